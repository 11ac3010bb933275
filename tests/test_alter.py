"""Speeds, noises and their level, by counting and by measuring."""

import numpy as np
import pytest
import soundfile

from speechfuse.alter import altered
from speechfuse.errors import DataError
from speechfuse.types import Alteration


def tone(hertz=400.0, size=16000):
    return np.sin(2 * np.pi * hertz * np.arange(size) / 16000).astype(np.float32)


def loudest(samples):
    """Frequency in Hz."""
    return np.abs(np.fft.rfft(samples)).argmax() * 16000 / len(samples)


def decibels(speech, both):
    noise = both.astype(float) - speech
    return 10 * np.log10(np.mean(speech.astype(float) ** 2) / np.mean(noise**2))


@pytest.mark.parametrize("speed", [0.9, 1.1, 0.5, 2.0, 0.93])
@pytest.mark.parametrize("size", [16000, 15999, 6400])
def test_length_and_pitch_change_by_the_factor(speed, size):
    found = altered(tone(size=size), Alteration(speed=speed))
    assert len(found) == round(size / speed)
    assert found.dtype == np.float32
    assert loudest(found) == pytest.approx(400 * speed, rel=0.01)


@pytest.mark.parametrize("kind", ["white", "pink"])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_is_as_far_below_as_asked(kind, snr):
    found = altered(tone(), Alteration(noise=kind, snr=snr, seed=3))
    assert decibels(tone(), found) == pytest.approx(snr, abs=0.01)


def test_white_is_even_by_the_hertz_and_pink_by_the_octave():
    size = 1 << 17
    for kind, ratio in (("white", 8.0), ("pink", 1.0)):
        noise = altered(tone(size=size), Alteration(noise=kind, snr=0.0)) - tone(size=size)
        power = np.abs(np.fft.rfft(noise)) ** 2
        octaves = [power[size * f // 16000 : size * 2 * f // 16000].sum() for f in (500, 4000)]
        assert octaves[1] / octaves[0] == pytest.approx(ratio, rel=0.1)


def test_the_seed_decides_all_of_it():
    one, again, other = (altered(tone(), Alteration(noise="pink", seed=s)) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_a_recording_is_cut_or_repeated_to_the_length(tmp_path, seconds):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * 8000))
    soundfile.write(tmp_path / "rain.wav", sound, 8000)
    how = Alteration(noise=tmp_path / "rain.wav", snr=10.0, seed=1)
    found = altered(tone(), how)
    assert len(found) == 16000
    assert decibels(tone(), found) == pytest.approx(10, abs=0.01)
    others = [altered(tone(), Alteration(noise=how.noise, snr=10.0, seed=s)) for s in (1, 2)]
    assert np.array_equal(found, others[0])
    assert np.array_equal(found, others[1]) == (seconds < 1)  # where it is cut from is drawn


def test_silent_and_unreadable_noise_is_named(tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16000), 16000)
    (tmp_path / "text.wav").write_text("no sound")
    for name, said in (("quiet.wav", "is silent"), ("text.wav", "cannot decode the noise")):
        with pytest.raises(DataError, match=f"{name}.*{said}|{said}.*{name}"):
            altered(tone(), Alteration(noise=tmp_path / name))
