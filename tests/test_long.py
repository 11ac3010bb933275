"""Recordings of hours: no more memory than one of minutes, and every stretch in its place."""

from functools import partial

import numpy as np
import pytest
import soundfile

import doors
from fuzzing import outcomes
from speechfuse.pipeline.recordings import Recording
from speechfuse.pipeline.speech_model import SpeechModel

pytestmark = [pytest.mark.recipe, pytest.mark.stress, pytest.mark.timeout(3600)]
# By which hours may take more than minutes: oneDNN keeps what it made for up to 1,024 shapes, and
# the samples of three hours would be 690 MB.
MEGABYTES = 130.0


def long_recording(path, clips, minutes, rate=16000):
    """Words with pauses of half a second, other ones all the time."""
    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1, format="FLAC") as file:
        written = 0
        while written < minutes * 60 * rate:
            pause = 0.002 * random.standard_normal(rate // 2)
            piece = np.concatenate([clips[random.integers(len(clips))], pause])
            file.write(piece)
            written += len(piece)
    return path


@pytest.fixture(scope="module")
def clips(tiny_corpus):
    return [soundfile.read(path)[0] for path in sorted(tiny_corpus.parent.glob("*.wav"))]


@pytest.fixture
def minutes(request):
    return (10, 60, 180) if request.config.getoption("--stress") else (1, 3)


def test_hours_take_the_memory_of_minutes(answering, tmp_path, clips, minutes):
    most = {}
    for length in minutes:
        path = long_recording(tmp_path / f"{length}.flac", clips, length)
        read = partial(doors.answer_long, answering, path)
        (one,) = outcomes(abs, read, 1, seconds=3000, megabytes=2000)
        assert not one.problem, one.problem
        most[length] = one.megabytes
        print(f"{length} min: {one.seconds:.1f} s, {one.megabytes:.0f} MB")
    assert max(most.values()) < most[minutes[0]] + MEGABYTES


def test_a_long_text_is_that_of_its_stretches(answering, tmp_path, clips):
    path = long_recording(tmp_path / "long.flac", clips, 2)
    model = SpeechModel(answering)
    answer = model(path)
    stretches = [*Recording(path).stretches(model.stretch)]
    assert len(stretches) > 5
    alone = [model((samples, 16000)) for _, samples in stretches]
    texts = [one["asr"].text for one in alone]
    assert answer["asr"].text == " ".join(text for text in texts if text)
    starts = [
        start + word.start
        for (start, _), one in zip(stretches, alone, strict=True)
        for word in one["asr"].words
    ]
    assert [word.start for word in answer["asr"].words] == pytest.approx(starts)
