import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechfuse
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RunError
from speechfuse.pipeline import speech_model
from speechfuse.pipeline.answers import Label, Transcript, Voice
from speechfuse.train import train_run
from three_tasks import LONG, three_tasks

pytestmark = pytest.mark.recipe  # words are learned for this, in some seconds

HARMONIFUSE = {
    "fusion": {
        "interface": {"kind": "gated_encoder"},
        "merge": {"kind": "gated"},
        "normalize": "layer_norm",
        "per_task": False,
    },
    "context": {
        "preset": "tiny",
        "dim": 32,
        "layers": 2,
        "heads": 2,
        "interface": {"kind": "prompt_adaptive"},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_corpus):
    """A run with a head for each task, and one with a prompted transformer, trained for real."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = str(tiny_corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = three_tasks(corpus, **LONG)
        train_run(read_recipe(base), folder / "heads")
        tasks = {
            "asr": {"corpus": corpus, "units": "bpe", "head": {"kind": "text", "ctc": 0.3}},
            "emotion": {"corpus": corpus, "head": {"kind": "classifier"}},
        }
        short = {"steps": 10, "batch_seconds": 4, "learning_rate": 1e-2}
        recipe = {**base, **HARMONIFUSE, "tasks": tasks, "training": short}
        train_run(read_recipe(recipe), folder / "prompted")
    return folder


@pytest.fixture
def model(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return speechfuse.load("heads")


def test_nobody_who_answers_scores_or_extracts_waits_for_the_trainer(runs, tiny_corpus):
    """Lightning would take three times as long to import as torch."""
    code = (
        "import sys, speechfuse, speechfuse.evaluate, speechfuse.extract, speechfuse.predict;"
        f"speechfuse.load('heads')({str(tiny_corpus.parent / 's6-0.wav')!r});"
        "slow = {'lightning', 'torch._dynamo', 'sympy', 'scipy'} & {*sys.modules};"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], cwd=runs, check=True)


@pytest.fixture
def clips(tiny_corpus):
    return [tiny_corpus.parent / f"s{s}-{i}.wav" for s in (6, 7) for i in range(4)]


def same(one, other):
    assert one["asr"].text == other["asr"].text
    assert one["emotion"].label == other["emotion"].label
    assert one["emotion"].scores == pytest.approx(other["emotion"].scores, abs=1e-5)
    assert one["verification"].similarity(other["verification"]) > 0.9999


def test_answers_are_those_that_were_scored(model, clips, runs):
    answers = model(clips)
    for task in ("asr", "emotion"):
        kept = {r["id"]: r["prediction"] for r in Run(runs / "heads").table("test", task)}
        for path, answer in zip(clips, answers, strict=True):
            result = answer[task]
            found = result.text if isinstance(result, Transcript) else result.label
            assert found == kept[path.stem]
    assert len({answer["asr"].text for answer in answers}) > 1


def test_the_readme_shows_how(runs, clips, tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    blocks = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    (shown,) = [block for block in blocks if "speechfuse.load" in block]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(runs / "heads")
    (tmp_path / "call.wav").write_bytes(clips[2].read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(shown, {})
    assert "Word(text=" in capsys.readouterr().out


def test_one_or_many_in_any_form_have_one_answer(model, clips):
    samples, rate = soundfile.read(clips[0], dtype="float32")
    alone = model(clips[0])
    assert alone.name == str(clips[0])
    assert alone.duration == pytest.approx(len(samples) / rate)
    assert isinstance(alone["verification"], Voice)
    for form in (
        str(clips[0]),
        io.BytesIO(clips[0].read_bytes()),
        (samples, rate),
        {"array": samples, "sampling_rate": rate},
    ):
        same(alone, model(form))
    with clips[0].open("rb") as file:
        same(alone, model(file))
    same(alone, model(clips)[0])
    (only,) = model([clips[0]], tasks=["emotion"])
    assert list(only.results) == ["emotion"]
    assert isinstance(only["emotion"], Label)


def test_a_generator_is_read_as_far_as_a_batch_needs(model, clips, monkeypatch):
    monkeypatch.setattr(speech_model, "BATCH_SECONDS", 2.0)
    read = []

    def given():
        for number in range(1000):
            read.append(number)
            yield clips[number % len(clips)]

    answers = model(given(), tasks=["emotion"])
    assert read == []
    first = [next(answers) for _ in range(3)]
    assert [answer.name for answer in first] == [str(clip) for clip in clips[:3]]
    assert len(read) <= 8


def test_long_recordings_are_cut_at_pauses_and_joined(runs, clips, monkeypatch):
    """Words and pauses: what the clips say, one after another, with times that go on."""
    monkeypatch.chdir(runs)
    model = speechfuse.load("heads", stretch=1.5)
    pieces = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    pause = np.zeros(8000, np.float32)
    long = np.concatenate([part for piece in pieces for part in (piece, pause)])
    answer = model((long, 16000))
    assert answer.duration == pytest.approx(len(long) / 16000)
    transcript = answer["asr"]
    assert transcript.text == " ".join(word.text for word in transcript.words)
    begins = [word.start for word in transcript.words]
    assert begins == sorted(begins)
    assert all(0 <= w.start < w.end <= answer.duration + 0.1 for w in transcript.words)
    assert begins[-1] > 0.8 * answer.duration
    stretches = answer["emotion"].stretches
    assert len(stretches) >= 5
    assert [s.start for s in stretches][1:] == pytest.approx([s.end for s in stretches][:-1])
    weights = np.array([s.end - s.start for s in stretches])
    mean = sum(w * s.scores["loud"] for w, s in zip(weights, stretches, strict=True))
    assert answer["emotion"].scores["loud"] == pytest.approx(mean / weights.sum())
    assert np.linalg.norm(answer["verification"].vector) == pytest.approx(1, abs=1e-5)


def test_a_stretch_that_does_not_align_is_one_word_and_the_others_keep_theirs(
    runs, clips, monkeypatch
):
    """Its text has more tokens than it has frames, as a head that writes without an end gives."""
    monkeypatch.chdir(runs)
    model = speechfuse.load("heads", stretch=1.0)
    pieces = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    long = np.concatenate([part for piece in pieces for part in (piece, np.zeros(3000))])
    whole = model((long, 16000), ["asr", "emotion"])
    stretches = whole["emotion"].stretches
    assert len(stretches) >= 3
    second = iter([False, True, *[False] * 100])
    align = speech_model.align
    monkeypatch.setattr(
        speech_model, "align", lambda *given: None if next(second) else align(*given)
    )
    answer = model((long, 16000), ["asr"])["asr"]
    assert answer.text == whole["asr"].text == " ".join(word.text for word in answer.words)
    (bad,) = [word for word in answer.words if word.score == 0]
    (place,) = [one for one in stretches if one.start == pytest.approx(bad.start, abs=0.05)]
    assert bad.end == pytest.approx(place.end, abs=0.05)
    others = [word for word in whole["asr"].words if not bad.start <= word.start < bad.end]
    assert [word for word in answer.words if word.score] == others


def test_no_word_ends_after_the_recording(model, clips):
    """A frame reaches a little further than the samples that it is computed from."""
    samples, rate = soundfile.read(clips[0], dtype="float32")
    for cut in range(0, 400, 25):
        spoken = samples[: len(samples) - 800 - cut]
        answer = model((spoken, rate), ["asr", "emotion"], window=0.15)
        assert answer["asr"].words
        assert answer["asr"].words[-1].end <= answer.duration
        assert all(one.end <= answer.duration for one in answer["emotion"].windows)


def test_classes_are_told_over_time(model, clips):
    """Calm clips, then loud ones; of a linear head, log-odds of windows are a mean."""
    calm, loud = (
        np.concatenate([soundfile.read(one, dtype="float32")[0] for one in clips[first::2]][:4])
        for first in (0, 1)
    )
    samples = np.concatenate([calm, loud])
    answer = model((samples, 16000), tasks=["emotion"], window=0.8)["emotion"]
    assert [one.end for one in answer.windows] == pytest.approx([0.8, 1.6, 2.4, 3.2], abs=0.03)
    quiet, strong = ([one.scores["loud"] for one in answer.windows[i : i + 2]] for i in (0, 2))
    assert max(quiet) < min(strong)

    def odds(scores):
        return np.log(scores["loud"] / scores["calm"])

    assert np.mean([odds(one.scores) for one in answer.windows]) == pytest.approx(
        odds(answer.scores), rel=0.02
    )
    assert answer.to_dict()["windows"][0]["start"] == 0
    assert not model((samples, 16000), tasks=["emotion"])["emotion"].windows
    long = model((np.tile(samples, 8), 16000), tasks=["emotion"], window=2.0)["emotion"]
    assert len(long.stretches) > 1
    edges = [(one.start, one.end) for one in long.windows]
    assert edges == sorted(edges)
    assert edges[-1][1] == pytest.approx(25.6, abs=0.1)


def test_a_prompted_transformer_tells_classes_over_time(runs, clips, monkeypatch):
    monkeypatch.chdir(runs)
    samples = np.tile(soundfile.read(clips[0], dtype="float32")[0], 8)
    many = [(samples, 16000), (samples[:9000], 16000), (samples[:40000], 16000)]
    found = [one["emotion"] for one in speechfuse.load("prompted")(many, ["emotion"], window=1.0)]
    assert [len(one.windows) for one in found] == [3, 0, 2]
    assert all(sum(w.scores.values()) == pytest.approx(1) for one in found for w in one.windows)


def test_words_stand_where_they_are_said(model, clips):
    """Each word of the tones is 0.15 s long and 0.05 s apart from the next."""
    right = 0
    for answer in model(clips, tasks=["asr"]):
        words = answer["asr"].words
        assert " ".join(w.text for w in words) == answer["asr"].text
        assert all(0 < w.score <= 1 for w in words)
        if len(words) == 2:
            right += words[0].start < 0.2 and words[1].end > 0.2 and words[1].start >= words[0].end
    assert right >= 3


def test_a_recording_that_cannot_be_read_spares_the_others(model, clips, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    short = (np.zeros(10, np.float32), 16000)
    many = [clips[0], tmp_path / "bad.wav", clips[1], short]
    with pytest.raises(DataError, match="cannot decode"):
        model(many)
    answers = model(many, errors="keep")
    assert [bool(answer.error) for answer in answers] == [False, True, False, True]
    assert "has 10 samples" in answers[3].error
    same(answers[2], model(clips[1]))
    with pytest.raises(DataError, match="cannot decode"):
        answers[1]["asr"]
    assert set(answers[1].to_dict()) == {"audio", "duration", "error"}


def test_layers_are_shown_when_asked_for(runs, clips, monkeypatch):
    monkeypatch.chdir(runs)
    plain = speechfuse.load("heads")(clips[0], tasks=["asr"])
    assert not plain.layers
    model = speechfuse.load("prompted")
    answer = model(clips[:2], layers=True)[1]
    first, second = answer.layers["asr"]
    assert first.model.startswith("mel")
    assert second.model.startswith("prompted transformer")
    assert second.texts[-1] == "end"
    assert second.weights.shape == (2, len(second.texts))
    np.testing.assert_allclose(second.weights.sum(0), 1, atol=1e-5)
    assert answer.to_dict()["layers"]["asr"][1]["texts"] == list(second.texts)
    assert answer["asr"].text == model(clips[1], tasks=["asr"])["asr"].text


def test_layers_of_stretches_stand_in_their_order(runs, clips, monkeypatch):
    """Though they are heard by length."""
    monkeypatch.chdir(runs)
    samples = np.concatenate([soundfile.read(one, dtype="float32")[0] for one in clips])
    model = speechfuse.load("prompted", stretch=1.3)
    for answer in model([(samples, 16000), (samples[9000:], 16000)], layers=True):
        for given in answer.layers.values():
            starts = [one.start for one in given]
            assert len(set(starts)) > 2
            assert starts == sorted(starts)


def test_one_task_may_be_given_by_its_name(runs, clips, monkeypatch):
    monkeypatch.chdir(runs)
    answer = speechfuse.load("heads", tasks="emotion")(clips[0], tasks="emotion")
    assert list(answer.results) == ["emotion"]


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(runs, device):
    with pytest.raises(RunError, match=rf"no device '{device}' .*; choose from: cpu"):
        speechfuse.load(runs / "heads", device=device)


def test_what_would_be_ignored_is_refused(runs, model, clips):
    for window in (0, -1.0, math.nan, math.inf):
        with pytest.raises(RunError, match=f"window of {window:g} s"):
            model(clips[0], window=window)
    with pytest.raises(RunError, match="errors='ignore'; choose from: raise, keep"):
        model(clips[0], errors="ignore")
    for stretch in (0, -1.0, math.nan):
        with pytest.raises(RunError, match=f"stretch of {stretch:g} s"):
            speechfuse.load("heads", stretch=stretch)


def test_unknown_tasks_and_folders_are_named(runs, model, clips):
    for tasks in (["emotio"], "emotio"):
        with pytest.raises(RunError, match=r"^the run has no task 'emotio'; known: .*emotion"):
            model(clips[0], tasks=tasks)
    with pytest.raises(RunError, match="is no run folder"):
        speechfuse.load(runs)
    with pytest.raises(RunError, match="no task 'x'"):
        speechfuse.load("heads", tasks=["x"])
    with pytest.raises(RunError, match="a prompt in words asks one task"):
        model(clips[0], prompt="what")


def test_a_bar_is_shown_if_asked_and_of_minutes_on_a_terminal(model, clips, monkeypatch, capsys):
    def told(audio, **asked):
        answers = model(audio, tasks="emotion", **asked)
        if not isinstance(audio, (list, tuple)):
            list(answers)
        return capsys.readouterr().err.split()

    long = (np.random.default_rng(0).normal(0, 0.1, 90 * 16000).astype(np.float32), 16000)
    shown = ["seconds", "of", "audio", "...", "seconds", "of", "audio:"]
    assert told(clips) == told(long) == []
    assert told(clips, progress=True) == [*shown, "4"]
    assert told(long, progress=True) == told(iter([long]), progress=True) == [*shown, "90"]
    monkeypatch.setattr("speechfuse.bars.on_screen", lambda: True)
    monkeypatch.setattr(speech_model, "on_screen", lambda: True)
    assert told(clips) == told(iter([long])) == told([long], progress=False) == []
    assert "90/90" in told(long)
    assert "94/94" in told([*clips, long])
    assert "4/4" in told(clips, progress=True)


def test_progress_tells_the_seconds_of_one_recording_and_of_many(model, clips):
    seen = []

    def note(*told):
        seen.append(told)

    one = (np.random.default_rng(0).normal(0, 0.1, 150 * 16000).astype(np.float32), 16000)
    model(one, tasks=["emotion"], progress=note)
    assert len(seen) >= 3
    assert {(what, total) for what, _, total in seen} == {("seconds of audio", 150)}
    done = [done for _, done, _ in seen]
    assert done == sorted(done)
    assert done[0] == 0 < done[1] < 100
    assert done.count(150) == 1
    seen.clear()
    model([*clips, one], tasks=["emotion"], progress=note)
    total = math.ceil(150 + sum(soundfile.info(path).duration for path in clips))
    assert {told[2] for told in seen} == {total}
    assert seen[-1] == ("seconds of audio", total, total)
    seen.clear()
    list(model(iter([one]), tasks=["emotion"], progress=note))
    assert all(done < total for _, done, total in seen[:-1])
    assert seen[-1] == ("seconds of audio", 150, 150)
