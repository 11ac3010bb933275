"""What lies between a mouth and a file: a room, a microphone and noise, all drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy import float32
    from numpy.random import Generator
    from numpy.typing import NDArray


def record(
    speech: NDArray[float32],
    sample_rate: int,
    random: Generator,
    *,
    reverb_time: tuple[float, float] = (0.1, 0.5),
    snr: tuple[float, float] = (5.0, 25.0),
) -> NDArray[float32]:
    """Speech as a microphone in a room hears it, same length, float32 in [-1, 1].

    reverb_time: range of the time in which an echo falls by 60 dB, seconds. snr: range of the
    ratio of speech to noise, dB. The noise is coloured between white and red, and the microphone
    tilts the spectrum, so that neither tells the speaker.
    """
    from scipy.signal import fftconvolve

    tilted = _tilt(speech, random.uniform(-4, 4), sample_rate)
    room = _room(random.uniform(*reverb_time), sample_rate, random)
    wet = fftconvolve(tilted, room)[: len(speech)]
    noise = _tilt(random.standard_normal(len(speech)), random.uniform(-5, 0), sample_rate)
    noise *= _rms(wet) / _rms(noise) * 10 ** (-random.uniform(*snr) / 20)
    heard = wet + noise
    heard *= min(1.0, 0.99 / float(np.abs(heard).max()))
    recorded: NDArray[float32] = heard.astype(np.float32)
    return recorded


def _rms(signal: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(signal)))) + 1e-9


def _tilt(signal: NDArray[np.floating], slope: float, sample_rate: int) -> NDArray[np.float64]:
    """Change a spectrum by `slope` dB per octave around 1 kHz."""
    from scipy import fft

    size = fft.next_fast_len(len(signal), real=True)
    frequency = np.maximum(fft.rfftfreq(size, 1 / sample_rate), 60.0)
    spectrum = fft.rfft(signal, size) * (frequency / 1000) ** (slope / 6.02)
    tilted: NDArray[np.float64] = fft.irfft(spectrum, size)[: len(signal)]
    return tilted


def _room(reverb_time: float, sample_rate: int, random: Generator) -> NDArray[np.float64]:
    """An impulse response: the direct sound, then noise that dies away exponentially."""
    time = np.arange(int(reverb_time * sample_rate)) / sample_rate
    echo = random.standard_normal(len(time)) * 10 ** (-3 * time / reverb_time)
    echo[: int(0.003 * sample_rate)] = 0  # 3 ms until the first wall answers
    ratio = 10 ** (-random.uniform(2, 12) / 20)  # echo against direct sound, 2 to 12 dB below
    response = echo * ratio / np.linalg.norm(echo)
    response[0] = 1.0
    return response
