"""The page: record or upload, read what is heard. Only what the run's tasks can do is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount

from speechfuse.errors import SpeechFuseError
from speechfuse.pipeline.answers import Answer, Voice
from speechfuse.pipeline.recordings import Samples
from speechfuse.serve.answered import (
    EMPTY,
    answer_html,
    comparison_html,
    listed,
    refusal_html,
)
from speechfuse.serve.app import HANDLERS, Service
from speechfuse.serve.asked import PROMPT
from speechfuse.serve.job import Job
from speechfuse.serve.refusals import Refusal, unknown, unreadable
from speechfuse.serve.uploads import decode, shown_name

KEPT = (60, 600)  # seconds: how often old uploads of the page are deleted, and how old they are
FONT = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]  # of the reader's own machine
FONT_MONO = [gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")]
WINDOW = 2.0  # seconds of each bar of classes over time
CSS = Path(__file__).with_name("answers.css")
AT_ONCE = 16  # answers of the page that are waited for


def _sound(label: str) -> gr.Audio:
    """Recorded or uploaded, never fetched: an address in place of an upload is refused.

    No class of its own: the library would write a stub file beside it.
    """
    options: dict[str, Any] = {"type": "filepath", "editable": False, "buttons": []}
    sound = gr.Audio(label=label, sources=["upload", "microphone"], **options)
    move = sound.async_move_resource_to_block_cache

    async def move_own(given: str | Path | None) -> str | None:
        cache = Path(sound.GRADIO_CACHE).resolve()
        if given is None or cache not in Path(given).resolve().parents:
            raise gr.Error("only recordings that were uploaded here are read")
        return await move(given)

    setattr(sound, "async_move_resource_to_block_cache", move_own)  # noqa: B010
    return sound


def mount_page(app: FastAPI, service: Service, folder: TemporaryDirectory[str]) -> None:
    """At the root of the service. folder: where uploads of the page lie for some minutes."""
    app.state.page_uploads = folder
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # gradio would make an event loop for each of its locks, and close none
        asyncio.run(_mounted(app, service))
    else:
        _mount(app, service)


async def _mounted(app: FastAPI, service: Service) -> None:
    _mount(app, service)


def _mount(app: FastAPI, service: Service) -> None:
    gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        max_file_size=service.limits.upload_bytes,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        css_paths=[CSS],
        theme=gr.themes.Base(primary_hue="blue", font=FONT, font_mono=FONT_MONO),
        app_kwargs={"exception_handlers": HANDLERS},
    )
    # A mount takes every address, so another method of one of the service would be "not found".
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount)
    app.router.default = mounted.app


def build_page(service: Service) -> gr.Blocks:
    """Tabs only where there is something to compare."""
    model = service.model
    voices = [name for name, task in model.tasks.items() if task.reads == "vector"]
    heard = [name for name in model.tasks if name not in voices]
    worded = [name for name, entry in model.recipe.tasks.items() if entry.prompts]
    with gr.Blocks(analytics_enabled=False, title="speechfuse", delete_cache=KEPT) as page:
        gr.Markdown(
            f"# speechfuse\n**{listed([*heard, *voices])}** by the run "
            f"{model.folder.resolve().name}. Recordings go to nobody else and are deleted within "
            f"{sum(KEPT) // 60 + 1} minutes."
        )
        with gr.Tabs():
            if heard:
                with gr.Tab("Listen"):
                    _one_recording(service, heard, [name for name in worded if name in heard])
            if voices:
                with gr.Tab("Compare voices"):
                    _two_voices(service, voices)
    page.queue(max_size=service.limits.queue, default_concurrency_limit=AT_ONCE)
    built: gr.Blocks = page
    return built


def _one_recording(service: Service, tasks: list[str], worded: list[str]) -> None:
    sound = _sound("Record or upload speech")
    with gr.Row():
        chosen = gr.CheckboxGroup(tasks, value=tasks, label="Tasks", visible=len(tasks) > 1)
        layers = gr.Checkbox(value=True, label="Show the layers that are read")
    prompt = gr.Textbox(
        label=f"Prompt in other words, for one task: {' or '.join(worded)}",
        max_length=PROMPT,
        visible=bool(worded),
    )
    button = gr.Button("Answer", variant="primary", elem_id="answer")
    shown = gr.HTML(EMPTY, elem_id="shown")

    def answered(path: str | None, wanted: Sequence[str], weights: bool, words: str) -> str:
        try:
            asked = [name for name in tasks if name in wanted]
            if not asked:
                raise Refusal(422, "no task is ticked", "one or more", "tick one")
            options: dict[str, Any] = {"layers": weights, "window": WINDOW, "prompt": words or None}
            answer, samples = _heard(service, path, asked, **options)
            return answer_html(answer, samples)
        except Refusal as refusal:
            return refusal_html(refusal)

    inputs: list[Any] = [sound, chosen, layers, prompt]
    button.click(answered, inputs, shown, api_visibility="private")


def _two_voices(service: Service, tasks: list[str]) -> None:
    with gr.Row():
        sounds = [_sound(f"{which} voice") for which in ("First", "Second")]
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    shown = gr.HTML(EMPTY, elem_id="compared")

    def compared(first: str | None, second: str | None) -> str:
        try:
            one, other = (_heard(service, path, tasks)[0] for path in (first, second))
            found: dict[str, tuple[Voice, Voice]] = {}
            for task in tasks:
                pair = one[task], other[task]
                assert isinstance(pair[0], Voice)
                assert isinstance(pair[1], Voice)
                found[task] = pair[0], pair[1]
            return comparison_html(found)
        except Refusal as refusal:
            return refusal_html(refusal)

    button.click(compared, [*sounds], shown, api_visibility="private")


def _heard(
    service: Service,
    path: str | None,
    tasks: Sequence[str],
    *,
    layers: bool = False,
    window: float | None = None,
    prompt: str | None = None,
) -> tuple[Answer, Samples]:
    """Under the same limits as requests. Raises Refusal."""
    if not path:
        raise Refusal(422, "no recording yet", "one that was recorded or uploaded", "add one")
    with service.seats.seat():
        with Path(path).open("rb") as file:
            samples = decode(file, shown_name(path), service.limits)
        options: dict[str, Any] = {"layers": layers, "window": window, "prompt": prompt}
        job = Job(samples, shown_name(path), tasks, **options)
        service.batcher.submit(job)
        try:
            answer = job.future.result(service.limits.timeout)
        except TimeoutError:
            service.batcher.give_up(job)
            raise Refusal(
                504,
                f"no answer within {service.limits.timeout:g} s",
                "one in less",
                "take a shorter recording, or try again when less is going on",
            ) from None
        except Refusal:
            raise
        except SpeechFuseError as error:
            raise unknown(error) from error
        except Exception as error:
            raise Refusal(
                500, "a mistake of the service", "an answer", "tell who runs it"
            ) from error
    if answer.error is not None:
        raise unreadable(answer.error)
    return answer, samples
