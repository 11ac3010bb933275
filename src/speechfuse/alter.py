"""Another speed, or noise: what is done to the samples of a clip, the same each time.

speed 0.9   ~~~~~~~~~~  ->  ~~~~~~~~~~~     longer and deeper, as a slowed tape
noise       speech + gain * noise           at so many dB of speech over noise; speech stays
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy import float32, float64
from numpy.typing import NDArray

from speechfuse.audio import SAMPLE_RATE, read_audio, sound_seconds
from speechfuse.errors import DataError
from speechfuse.types import Alteration

Samples = NDArray[float32]


def altered(samples: Samples, how: Alteration) -> Samples:
    """Samples of which so many times more were read as they become fewer.

    Raises:
        DataError: noise that cannot be read, or is silent.
    """
    if how.speed != 1:
        samples = at_speed(samples, how.speed)
    if how.noise is None:
        return samples
    random = np.random.default_rng(how.seed)
    if isinstance(how.noise, Path):
        noise = recorded(how.noise, len(samples), random)
    else:
        noise = made(how.noise, len(samples), random)
    return mixed(samples, noise, how.snr)


def at_speed(samples: Samples, speed: float) -> Samples:
    """Played so many times as fast, with all frequencies so many times as high (Ko et al. 2015)."""
    import soxr

    changed: Samples = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")
    return changed


def made(
    kind: Literal["white", "pink"], size: int, random: np.random.Generator
) -> NDArray[float64]:
    """Noise of equal power in each hertz, or in each octave."""
    noise = random.standard_normal(size)
    if kind == "white":
        return noise
    spectrum = np.fft.rfft(noise)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, size)


def recorded(path: Path, size: int, random: np.random.Generator) -> NDArray[float64]:
    """A stretch of a recording from anywhere in it; a shorter one again and again."""
    wanted = size / SAMPLE_RATE
    whole = sound_seconds(path, f"the noise {path}")
    begin = random.uniform(0, whole - wanted) if whole > wanted else 0.0
    found = np.resize(read_audio(path, begin, wanted).astype(float64), size)
    if not found.any():
        raise DataError(f"the noise {path} is silent for {wanted:.2f} s from {begin:.2f} s on")
    return found


def mixed(samples: Samples, noise: NDArray[float64], snr: float) -> Samples:
    """With noise so many dB below, over the whole clip."""
    power = float(np.mean(samples.astype(float64) ** 2)), float(np.mean(noise**2))
    gain = (power[0] / max(power[1], 1e-20)) ** 0.5 * 10 ** (-snr / 20)
    both: Samples = (samples + gain * noise).astype(float32)
    return both
