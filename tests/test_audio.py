import tracemalloc

import numpy as np
import pytest
import soundfile

from speechfuse.audio import read_audio
from speechfuse.errors import DataError


def tone(rate, seconds=0.5, channels=1):
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * time)] * channels, axis=1)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_16_khz_mono(tmp_path, rate, channels):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate, channels=channels), rate)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 8000) <= 1
    middle = slice(1000, 7000)
    time = np.arange(len(samples)) / 16000
    np.testing.assert_allclose(
        samples[middle], 0.5 * np.sin(2 * np.pi * 440 * time)[middle], atol=2e-3
    )


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_formats_of_libsndfile(tmp_path, kind):
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, tone(16000), 16000)
    assert np.abs(read_audio(path)).max() == pytest.approx(0.5, abs=0.05)


def test_a_span_is_cut_out(tmp_path):
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(-1, 1, 16000), 16000, subtype="FLOAT")
    part = read_audio(path, start=0.25, duration=0.5)
    assert len(part) == 8000
    assert part[0] == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("subtype", ["PCM_16", "GSM610", "ALAW"])
def test_files_of_telephones_are_read_from_anywhere(tmp_path, subtype):
    """GSM cannot be sought in."""
    soundfile.write(tmp_path / "call.wav", tone(8000, 2.0), 8000, subtype)
    whole = read_audio(tmp_path / "call.wav")
    part = read_audio(tmp_path / "call.wav", 0.5, 0.25)
    assert len(part) == 4000
    np.testing.assert_allclose(part[500:3500], whole[8500:11500], atol=2e-3)


def test_absurd_headers_and_samples_are_refused(tmp_path):
    """A second of samples at 1 Hz would be hours, and 1e30 becomes infinite on the way."""
    soundfile.write(tmp_path / "slow.wav", np.zeros(1000), 1)
    with pytest.raises(DataError, match="1 channels at 1 Hz, expected at most 64 at 1000 to"):
        read_audio(tmp_path / "slow.wav")
    soundfile.write(tmp_path / "wide.wav", np.zeros((10, 65)), 16000)
    with pytest.raises(DataError, match="65 channels at 16000 Hz"):
        read_audio(tmp_path / "wide.wav")
    soundfile.write(tmp_path / "loud.wav", np.array([0.1, 1e30, -1e30]), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"holds 2 NaN or infinite samples, or beyond 2e.09"):
        read_audio(tmp_path / "loud.wav")


def test_a_header_that_promises_hours_takes_no_memory_for_them(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(16000), 16000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the number of samples, 36 bits: 2^36 - 1
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"tone\.flac"):
        read_audio(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_bad_files_are_named_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match="no audio file at"):
        read_audio(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("this is not audio")
    with pytest.raises(DataError, match=r"cannot decode .*text.wav.*ffmpeg"):
        read_audio(tmp_path / "text.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(DataError, match="holds no samples"):
        read_audio(tmp_path / "empty.wav")
    samples = np.zeros(100)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match="holds 1 NaN or infinite samples"):
        read_audio(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "whole.mp3", tone(44100, 2.0), 44100)
    (tmp_path / "half.mp3").write_bytes((tmp_path / "whole.mp3").read_bytes()[:6000])
    with pytest.raises(DataError, match=r"half\.mp3 breaks off after .* of 2\.00 s"):
        read_audio(tmp_path / "half.mp3")
    with pytest.raises(DataError, match="found a folder"):
        read_audio(tmp_path)
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    with pytest.raises(DataError, match="holds no samples from 9 s on"):
        read_audio(tmp_path / "short.wav", start=9.0)
