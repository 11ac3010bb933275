"""Answer for audio files: run the upstreams, then every task's head on one pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.clips import read_batch
from speechfuse.contracts import Task, Upstream
from speechfuse.errors import RunError, ShapeError, did_you_mean
from speechfuse.evaluate import load_model
from speechfuse.model import FusionModel
from speechfuse.recipe import Recipe
from speechfuse.tasks.verification import Verification
from speechfuse.types import Frames, LayerStack, Utterance, Waveforms


@torch.no_grad()
def predict_files(
    folder: Path,
    files: Sequence[Path],
    only: Sequence[str] | None = None,
    prompt: str | None = None,
) -> Iterator[str]:
    """One line for each file and task; verification compares every pair of files.

    prompt: in words, for a run that was trained with such. A few files cannot be standardised as
    the many of the trials are: such a cosine is marked, and so is a text that was cut at its limit.

    Raises:
        RunError: no trained run, other weights of an upstream, no such task, or one file alone
            where there is something to compare only.
        DataError: a file that cannot be read, before anything is answered.
    """
    run = Run(folder)
    recipe = run.recipe()
    for name in only or ():
        if name not in recipe.tasks:
            raise RunError(f"{folder} has no task '{name}'; {did_you_mean(name, recipe.tasks)}")
    tasks: dict[str, Task] = {}
    for name, state in run.tasks().items():
        tasks[name] = build.build_task(name, recipe.tasks[name])
        tasks[name].load_state(state)
    wanted = list(only or tasks)
    if len(files) == 1 and all(tasks[name].reads == "vector" for name in wanted):
        raise RunError(f"{' and '.join(wanted)} compares files; give two or more, found {files[0]}")
    if prompt is not None:
        _check_prompt(recipe, wanted)
    run.check(recipe)
    model = load_model(run, recipe, tasks)
    upstreams = [build.build_upstream(recipe, name) for name in recipe.upstreams]
    tuned = build.tuned_upstreams(recipe)
    own = [name in tuned for name in recipe.upstreams]  # the model's own, it runs them itself
    utterances = [Utterance(id=str(path), audio=path) for path in files]
    read = [[read_batch([u], upstream) for upstream in upstreams] for u in utterances]
    answers: dict[str, list[Any]] = {name: [] for name in wanted}
    for clips in read:
        given: Mapping[str, Sequence[LayerStack] | Frames] = {}
        if own == [False]:
            given = _streamed(model, upstreams[0], clips[0], wanted)
        if not given:
            inputs = [
                clip if mine else upstream(clip)
                for upstream, clip, mine in zip(upstreams, clips, own, strict=True)
            ]
            given = dict.fromkeys(wanted, model.stacks(inputs))
        for name, found in answers.items():
            found += model.predict(given[name], name, None if prompt is None else [prompt])
    for name, found in answers.items():
        yield from _lines(tasks[name], name, utterances, found)


def _check_prompt(recipe: Recipe, wanted: Sequence[str]) -> None:
    """Refuse words for several tasks, or for one that has learned none."""
    worded = [name for name, entry in recipe.tasks.items() if entry.prompts]
    if len(wanted) != 1 or wanted[0] not in worded:
        raise RunError(
            f"a prompt in words asks one task that was trained with some, found "
            f"{' and '.join(wanted)}; choose with --task from: {', '.join(worded) or 'none'}"
        )


def _streamed(
    model: FusionModel, upstream: Upstream, clip: Waveforms, tasks: Sequence[str]
) -> dict[str, Frames]:
    """What each task's fusion makes of one frozen encoder while that makes its layers.

    So they are never held together. Empty if an interface needs them to be.
    """
    try:
        streams = {name: model.fusion_of(name).stream(name) for name in tasks}
    except ShapeError:
        return {}
    lengths, layers = upstream.stream(clip)
    for index, hidden in enumerate(layers):
        for stream in streams.values():
            stream.accumulate(index, hidden)
    rate = upstream.plan.spec.frame_rate
    return {name: stream.result(lengths, rate) for name, stream in streams.items()}


def _lines(
    task: Task, name: str, utterances: Sequence[Utterance], found: Sequence[Any]
) -> Iterator[str]:
    if isinstance(found[0], torch.Tensor):
        raw = isinstance(task, Verification) and task.standardize
        note = "\tnot standardised, unlike the trials" if raw else ""
        for i, one in enumerate(utterances):
            for j in range(i + 1, len(utterances)):
                score = torch.cosine_similarity(found[i], found[j], dim=0)
                yield f"{one.id}\t{utterances[j].id}\t{name}\t{float(score):.3f}{note}"
        return
    for row in task.table(utterances, found, []):
        note = "\tcut at its limit" if row.get("cut") else ""
        yield f"{row['id']}\t{name}\t{row['prediction']}{note}"
