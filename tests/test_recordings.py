import io

import numpy as np
import pytest
import soundfile
import torch

from speechfuse.audio import read_audio
from speechfuse.errors import DataError
from speechfuse.pipeline.recordings import Recording, cut, quietest


def speech(seconds, rate=16000, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def whole(recording, longest=20.0):
    found = list(recording.stretches(longest))
    starts = [start for start, _ in found]
    sizes = [len(samples) for _, samples in found]
    assert starts == pytest.approx([sum(sizes[:i]) / 16000 for i in range(len(sizes))])
    assert max(sizes) <= longest * 16000
    return np.concatenate([samples for _, samples in found])


def test_a_stretch_ends_in_the_middle_of_a_pause():
    samples = speech(10)
    samples[7 * 16000 : 8 * 16000] = 0
    samples[2 * 16000 : 3 * 16000] = 0  # in the first half, where none ends
    assert 7.05 < quietest(samples) / 16000 < 7.95
    (_, one), (start, rest) = cut(iter([samples, speech(1)]), 10.0)
    assert len(one) / 16000 == start
    assert np.array_equal(np.concatenate([one, rest])[: len(samples)], samples)


def test_noise_without_a_pause_is_cut_all_the_same():
    assert 5 < quietest(speech(10)) / 16000 <= 10
    assert quietest(np.zeros(160000, np.float32)) == pytest.approx(160000 - 1600, abs=2)


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
def test_long_files_are_read_bit_by_bit_as_if_at_once(tmp_path, rate):
    soundfile.write(tmp_path / "a.flac", np.stack([speech(33, rate)] * 2, 1), rate)
    once = read_audio(tmp_path / "a.flac")
    given = [tmp_path / "a.flac", str(tmp_path / "a.flac"), (tmp_path / "a.flac").open("rb")]
    for one in given:
        found = whole(Recording(one), 5.0)
        assert abs(len(found) - len(once)) <= 1
        size = min(len(found), len(once))
        np.testing.assert_allclose(found[:size], once[:size], atol=1e-4)
    given[-1].close()
    assert np.array_equal(whole(Recording(tmp_path / "a.flac"), 60.0), once)


def test_samples_are_taken_in_every_form():
    samples = speech(1)
    integers = np.round(samples * 32768).clip(-32768, 32767).astype(np.int16)
    for given in [
        (samples, 16000),
        (samples.astype(np.float64), 16000.0),
        (torch.from_numpy(samples), 16000),
        (np.stack([samples, samples], 1), 16000),
        (integers, 16000),
        {"array": samples, "sampling_rate": 16000, "path": None},
    ]:
        np.testing.assert_allclose(whole(Recording(given)), samples, atol=2e-5)
    assert len(whole(Recording((samples, 8000)))) == 32000
    assert Recording((samples, 16000), 3).name == "recording 3"
    assert Recording({"array": samples, "sampling_rate": 16000, "path": "x.wav"}).name == "x.wav"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "is int; give a path"),
        (speech(1), r"is ndarray of shape \(16000,\); give a path"),
        ((speech(1), 0), "sample rate of 0"),
        ((speech(1), "fast"), "sample rate of 'fast'"),
        ((np.zeros((2, 16000)), 16000), "give samples first"),
        ((np.zeros((2, 3, 4)), 16000), "give samples"),
        ((np.zeros(0), 16000), "give samples"),
        ((np.array(["a"]), 16000), "give samples"),
        ((np.full(100, np.nan), 16000), "100 NaN or infinite"),
        ((speech(1)[:20], 768_000), "too few to resample"),
        ((speech(1), 16), r"has a sample rate of 16; give it in Hz, 1000 to 768000"),
        ((speech(1), 44100 * 1000), "sample rate of 44100000"),
        ((speech(1), np.inf), "sample rate of inf"),
        ((16000, speech(1)), r"is \(rate, samples\); give \(samples, rate\)"),
        ((np.zeros((70, 65)), 16000), "has 65 channels; give at most 64"),
    ],
)
def test_what_holds_no_sound_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        Recording(given)


def test_files_that_hold_no_sound_are_refused(tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "long.wav", speech(30), 16000)
    data = (tmp_path / "long.wav").read_bytes()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    bad = speech(30)
    bad[-5] = np.inf
    soundfile.write(tmp_path / "bad.wav", bad, 16000, subtype="FLOAT")
    for given, message in [
        (tmp_path / "nothing.wav", "no audio file at"),
        (tmp_path, "found a folder"),
        (tmp_path / "text.wav", "cannot decode"),
        (tmp_path / "none.wav", "holds no samples"),
        (tmp_path / "bad.wav", "1 NaN or infinite"),
        (io.BytesIO(b"hello"), "cannot decode recording 1"),
        (io.StringIO("hello"), "open as text"),
    ]:
        with pytest.raises(DataError, match=message):
            whole(Recording(given))
    assert len(whole(Recording(io.BytesIO(data)))) == 30 * 16000
