"""The page in a real browser, and what its server refuses."""

import asyncio
import gc
import json
import re
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the page and the service need the extra `demo`")
import uvicorn
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from starlette.testclient import TestClient

from chromium import Chromium, find_chromium
from speechfuse.build import read_recipe
from speechfuse.pipeline.speech_model import SpeechModel
from speechfuse.recipe import merged
from speechfuse.serve import page, uploads
from speechfuse.serve.app import Service
from speechfuse.serve.limits import Limits
from speechfuse.serve.pictures import COLOURS, by_word
from speechfuse.serve.server import served
from speechfuse.train import train_run
from test_serve import QUIET, model, trained  # noqa: F401 - fixtures
from three_tasks import three_tasks

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(600), *QUIET]
in_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH")


@pytest.fixture(autouse=True)
def collected():
    """What gradio leaves open is closed here, where it is known."""
    yield
    gc.collect()


@pytest.fixture
def client(model):  # noqa: F811
    service = Service.of(model, Limits(upload_mb=0.5))
    with TestClient(served(service), base_url="http://localhost") as one:
        yield one


@pytest.fixture
def address(model):  # noqa: F811
    """Of a real server with the page."""
    with running(model) as found:
        yield found


@contextmanager
def running(answers):
    service = Service.of(answers, Limits(upload_mb=0.5))
    config = uvicorn.Config(
        served(service), port=0, log_level="error", access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser(tmp_path):
    @asynccontextmanager
    async def start(heard=None):
        async with Chromium(tmp_path / "profile", heard) as one:
            yield one

    return start


async def hears(tab, clip):
    """Uploads a clip and asks for the answer."""
    await tab.until("!!document.querySelector('#answer')")
    await tab.upload(clip)
    await tab.until("!document.querySelector('input[type=file]')")  # a player in its place
    await answers(tab)


async def answers(tab):
    await tab.js("document.querySelector('#answer').click()")
    await tab.until("!!document.querySelector('#shown .picture, #shown .error')")
    return await tab.js("document.querySelector('#shown').innerText")


def test_no_file_of_the_server_can_be_read(client, trained, tmp_path):  # noqa: F811
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody may see this")
    for path in (secret, trained / "recipe.yaml", "/etc/passwd", "../../../../etc/passwd"):
        for form in ("file={}", "file=/{}", "file/{}", "stream/{}", "proxy={}"):
            for root in ("/gradio_api/", "/"):
                answer = client.get(root + form.format(path))
                assert answer.status_code in (400, 403, 404), (path, form, answer.status_code)
                assert b"nobody may" not in answer.content
                assert b"root:" not in answer.content


def test_addresses_are_not_followed(client):
    for path in ("file=http://example.org/x", "file=//example.org", "proxy=http://example.org"):
        answer = client.get(f"/gradio_api/{path}", follow_redirects=False)
        assert answer.status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/x.wav", "{recipe}"])
def test_an_event_cannot_name_a_file_or_an_address(client, trained, path):  # noqa: F811
    path = path.format(recipe=trained / "recipe.yaml")
    config = client.get("/config").json()
    event = next(d for d in config["dependencies"] if len(d["inputs"]) == 4)
    sound = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    data = [sound, ["asr"], False, ""]
    joined = client.post(
        "/gradio_api/queue/join",
        json={"data": data, "fn_index": event["id"], "session_hash": "abc"},
    )
    assert joined.status_code == 200, joined.text
    told = []
    with client.stream("GET", "/gradio_api/queue/data?session_hash=abc") as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                told.append(json.loads(line[5:]))
                if told[-1]["msg"] in ("process_completed", "close_stream"):
                    break
    assert told[-1]["success"] is False
    assert "root:" not in str(told)
    assert "upstreams" not in str(told)


def test_what_the_page_does_not_use_is_not_there(client):
    for path in ("call/x", "run/predict", "component_server", "info/x/../../call", "vibe-edit/"):
        assert client.post(f"/gradio_api/{path}", json={}).status_code in (404, 405)
    large = client.post("/gradio_api/upload", files={"files": ("a.wav", bytes(600_000))})
    assert large.status_code == 413


def test_nothing_comes_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="(https?://[^"]*)"', answer.text)
    assert all(one.startswith("http://localhost") for one in loaded), loaded


def test_uploads_are_deleted(model, tiny_corpus, monkeypatch):  # noqa: F811
    monkeypatch.setattr(page, "KEPT", (1, 1))
    service = Service.of(model, Limits())
    app = served(service)
    with TestClient(app, base_url="http://localhost") as one:
        audio = (tiny_corpus.parent / "s6-0.wav").read_bytes()
        (path,) = one.post("/gradio_api/upload", files={"files": ("a.wav", audio)}).json()
        assert Path(path).read_bytes() == audio
        end = time.monotonic() + 20
        while Path(path).exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not Path(path).exists()


@in_browser
def test_upload_answer_wrong_file_and_two_tabs(browser, address, model, tiny_corpus, tmp_path):  # noqa: F811
    clips = [tiny_corpus.parent / name for name in ("s6-0.wav", "s7-3.wav")]
    labels = [model(clip)["emotion"] for clip in clips]
    wrong = tmp_path / "wrong.wav"
    wrong.write_text("no sound")

    async def look():
        async with browser() as chromium:
            one = await chromium.open(address)
            other = await chromium.open(address, 360, dark=True)
            await asyncio.gather(*(hears(t, c) for t, c in zip((one, other), clips, strict=True)))
            for tab, label in zip((one, other), labels, strict=True):
                shown = await tab.js("document.querySelector('#shown').innerText")
                share = f"{100 * label.scores[label.label]:.0f} %"
                assert label.label in shown
                assert share in shown.replace("\u00a0", " ")
                assert "spectrogram, 0.40 s" in shown
                assert await tab.js("document.querySelectorAll('#shown .picture').length") >= 2
                wide = await tab.js("document.documentElement.scrollWidth - window.innerWidth")
                assert wide <= 0
                assert tab.complaints == []
            third = await chromium.open(address)
            await hears(third, wrong)
            shown = await third.js("document.querySelector('#shown .error').innerText")
            assert "wrong.wav is no recording" in shown
            assert "ffmpeg" in shown
            for tab in (one, other, third):
                asked = [r for r in tab.requests if not r.startswith((address, "data:", "blob:"))]
                assert asked == []

    asyncio.run(look())


@in_browser
def test_two_voices_are_compared(browser, address, model, tiny_corpus):  # noqa: F811
    clips = [tiny_corpus.parent / name for name in ("s6-0.wav", "s7-3.wav")]
    one, other = (model(clip)["verification"] for clip in clips)

    async def look():
        async with browser() as chromium:
            tab = await chromium.open(address)
            await tab.until("!!document.querySelector('#answer')")
            await tab.js("document.querySelectorAll('[role=tab]')[1].click()")
            for left, clip in zip((2, 1), clips, strict=True):
                place = "[...document.querySelectorAll('input[type=file]')]"
                seen = f"{place}.filter(f => f.closest('[role=tabpanel]')?.offsetParent)"
                await tab.until(f"{seen}.length == {left}")
                await tab.upload(clip, f"{seen}[0]")
            await tab.until(f"{seen}.length == 0")
            await tab.js("document.querySelector('#compare').click()")
            shown = await tab.until("document.querySelector('#compared .said')?.innerText")
            verdict = "One speaker" if one.compare(other).same else "Two speakers"
            assert shown == f"{verdict} cosine {one.similarity(other):.3f}"
            place = "(e => e.getBoundingClientRect().{})(document.querySelector('#compared {}'))"
            left, width = [await tab.js(place.format(at, "meter")) for at in ("left", "width")]
            find = "parseFloat(getComputedStyle(document.querySelector('.gauge'), '::before').left)"
            assert await tab.js(find) / width == pytest.approx(one.decision.threshold, abs=0.01)
            middle = [await tab.js(place.format(at, ".mark")) for at in ("left", "right")]
            assert sum(middle) / 2 - left == pytest.approx(one.decision.threshold * width, abs=2)
            assert tab.complaints == []

    asyncio.run(look())


@in_browser
def test_what_the_microphone_hears_is_answered(browser, address, tmp_path, monkeypatch):
    """A tone of 440 Hz is recorded, uploaded and decoded as one."""
    tone = tmp_path / "tone.wav"
    soundfile.write(tone, 0.5 * np.sin(2 * np.pi * 440 * np.arange(5 * 48000) / 48000), 48000)
    decoded = []

    def decode(*given):
        decoded.append(uploads.decode(*given))
        return decoded[-1]

    monkeypatch.setattr(page, "decode", decode)

    async def look():
        async with browser(tone) as chromium:
            tab = await chromium.open(address)
            await tab.until("!!document.querySelector('#answer')")
            for button in ('[aria-label="Record audio"]', ".record-button", ".stop-button"):
                seen = f"[...document.querySelectorAll(`button{button}`)].find(b => b.offsetParent)"
                await tab.until(f"!!{seen}")
                await asyncio.sleep(2.0 if button == ".stop-button" else 0)
                await tab.js(f"{seen}.click()")
            for _ in range(600):
                if any("/gradio_api/file=" in one for one in tab.requests):
                    break  # it is uploaded, and the player asks for it
                await asyncio.sleep(0.1)
            shown = await answers(tab)
            assert "spectrogram, " in shown
            assert tab.complaints == []
            asked = [r for r in tab.requests if not r.startswith((address, "data:", "blob:"))]
            assert asked == []

    asyncio.run(look())
    (samples,) = decoded
    assert len(samples) > 16000
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(np.argmax(spectrum) * 16000 / len(samples) - 440) < 5


@pytest.fixture(scope="module")
def worded(tmp_path_factory, tiny_corpus):
    """A model that was trained with two prompts for emotions."""
    change = {
        "fusion": {"interface": {"kind": "gated_encoder"}, "per_task": False},
        "context": {"preset": "tiny", "layers": 2, "dim": 32, "heads": 2, "join": 4},
        "tasks": {
            "asr": {"units": "characters", "head": {"kind": "text", "ctc": 0.3}},
            "emotion": {"prompts": ["how do they feel", "name the mood"]},
        },
    }
    folder = tmp_path_factory.mktemp("worded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_run(read_recipe(merged(three_tasks(tiny_corpus, steps=80), change)), folder / "run")
        return SpeechModel(folder / "run")


DRAWN = "[...document.querySelectorAll('#shown svg')].find(s => s.textContent.includes(`{}`))"
TEXTS = "[...{}.querySelectorAll('text')].map(t => t.textContent)"
BARS = """(svg => [...svg.querySelectorAll('path')]
  .filter(p => p.style.fill.startsWith('rgb') && !p.closest('[id^=legend]'))
  .map(p => [p.style.fill, p.getBoundingClientRect(), svg.getBoundingClientRect()])
  .map(([fill, r, s]) => [fill.match(/\\d+/g), r.x - s.x, r.y - s.y, r.width, r.height]))({})"""
CELLS = """(svg => [...svg.querySelectorAll('image')]
  .map(i => [i.getBoundingClientRect(), svg.getBoundingClientRect()])
  .map(([r, s]) => [r.x - s.x, r.y - s.y, r.width, r.height]))({})"""

ROOM = """(s => s.closest('.card').getBoundingClientRect().bottom - s.getBoundingClientRect().bottom
  )(document.querySelector('#shown .sound'))"""


async def bars_are(tab, label):
    """On the screen, emotions over time are as high and coloured as the model's answer has them."""
    svg = DRAWN.format("emotion over time")
    texts = await tab.js(TEXTS.format(svg))
    names = sorted(label.scores)
    assert texts[-len(names) :] == names  # the legend
    pixels, bars = await tab.seen(svg), await tab.js(BARS.format(svg))
    assert pixels.shape[1] > 250
    count = len(label.windows)
    assert len(bars) == count * len(names)
    for number, window in enumerate(label.windows):
        of_one = bars[number::count]  # from the ground up
        total = sum(height for *_, height in of_one)
        for name, colour, (fill, x, y, width, height) in zip(names, COLOURS, of_one, strict=False):
            assert height / total == pytest.approx(window.scores[name], abs=0.02)
            assert tuple(round(255 * one) for one in to_rgb(colour)) == tuple(map(int, fill))
            if height > 8:
                shown = pixels[round(y + height / 2), round(x + width / 2)]
                np.testing.assert_allclose(shown, to_rgb(colour), atol=0.02)


async def words_are(tab, transcript, given):
    """On the screen, alpha has a column for each word, as bright as the model's answer has it."""
    svg = DRAWN.format("asr: weights of the layers of prompted transformer")
    words, alpha = by_word([given.texts], given.weights, transcript.text)
    assert words == [*transcript.text.split(), "end"]
    assert (await tab.js(TEXTS.format(svg)))[: len(words)] == words
    pixels = await tab.seen(svg)
    x, y, width, height = (await tab.js(CELLS.format(svg)))[0]
    shades = colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]
    for (row, column), value in np.ndenumerate(alpha[::-1]):  # layer 0 stands below
        place = (row + 0.5) * height / len(alpha) + y, (column + 0.5) * width / len(words) + x
        shown = pixels[round(place[0]), round(place[1])]
        distance = np.abs(shades - shown).max(1)
        assert distance.min() < 0.02, "no colour of the map"
        low, span = float(alpha.min()), float(np.ptp(alpha))
        assert low + distance.argmin() / 255 * span == pytest.approx(value, abs=0.01 + span / 50)


@in_browser
def test_classes_over_time_and_alpha_of_words_are_drawn(browser, worded, tiny_corpus, tmp_path):
    """In light, and in dark on a narrow screen."""
    clips = [
        soundfile.read(tiny_corpus.parent / f"s{s}-{i}.wav")[0] for s in (6, 7) for i in (0, 1)
    ]
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.concatenate([clips[0]] * 6 + [clips[1]] * 6 + clips), 16000)
    answer = worded(clip, layers=True, window=2.0)
    (alpha,) = (one for one in answer.layers["asr"] if one.model.startswith("prompted"))
    assert len(answer["emotion"].windows) == 3
    assert len(answer["asr"].text.split()) > 1

    async def look(address):
        async with browser() as chromium:
            tabs = await chromium.open(address), await chromium.open(address, 390, dark=True)
            await asyncio.gather(*(hears(tab, clip) for tab in tabs))
            for tab in tabs:
                await bars_are(tab, answer["emotion"])
                await words_are(tab, answer["asr"], alpha)
                room = await tab.js(ROOM)
                assert room < 20, "padding alone below the spectrogram"
                wide = await tab.js("document.documentElement.scrollWidth - window.innerWidth")
                assert wide <= 0
                assert tab.complaints == []

    with running(worded) as address:
        asyncio.run(look(address))


@in_browser
def test_a_prompt_in_other_words_is_asked(browser, worded, tiny_corpus, monkeypatch):
    clip, words = tiny_corpus.parent / "s6-0.wav", "which mood is it"
    label = worded(clip, ["emotion"], prompt=words)["emotion"]
    prompts = []

    def check(model, wanted):  # noqa: F811
        prompts.append(wanted)
        return checked(model, wanted)

    checked = SpeechModel._check_prompt
    monkeypatch.setattr(SpeechModel, "_check_prompt", check)

    async def look(address):
        async with browser() as chromium:
            tab = await chromium.open(address)
            await tab.until("!!document.querySelector('#answer')")
            box = "[...document.querySelectorAll('textarea, input[type=text]')][0]"
            await tab.until(f"!!{box}?.offsetParent")
            assert "for one task: emotion" in await tab.js("document.body.innerText")
            await tab.js(f"{box}.focus()")
            await tab.call("Input.insertText", text=words)
            await hears(tab, clip)
            refused = await tab.js("document.querySelector('#shown .error').innerText")
            assert "a prompt in words asks one task" in refused
            ticks = "[...document.querySelectorAll('label')]"
            await tab.js(f"{ticks}.find(l => l.innerText.trim() == 'asr').click()")
            await tab.js("document.querySelector('#answer').click()")
            await tab.until("!!document.querySelector('#shown .picture')")
            shown = await tab.js("document.querySelector('#shown').innerText")
            share = f"{100 * label.scores[label.label]:.0f} %"
            assert label.label in shown
            assert share in shown.replace("\u00a0", " ")
            assert tab.complaints == []

    with running(worded) as address:
        asyncio.run(look(address))
    assert prompts == [["asr", "emotion"], ["emotion"]]
