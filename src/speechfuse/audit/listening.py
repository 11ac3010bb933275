"""What one recording is like: level, clipping, bandwidth, and what tells it from all others.

Light on purpose: worker processes import this file and no part of torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from speechfuse.audit.fingerprint import RATE, fingerprint, sketch

LONGEST = 600.0  # seconds of one utterance that are listened to
PRINTED = 30.0  # seconds of it that the fingerprint is of
FULL_SCALE = 0.999
FRAME = 0.025  # seconds
SILENCE = 1e-3  # rms of a frame, -60 dB below full scale
FAR_BELOW = 0.0178  # of the loudest frame, -35 dB

Place = tuple[Path, float, float | None]  # a file, and seconds: where in it, how much of it


@dataclass(frozen=True)
class Heard:
    """One utterance; an unreadable one has an error and nothing else."""

    error: str = ""
    rate: int = 0  # Hz, of the file
    seconds: float = 0.0
    missing: float = 0.0  # seconds that the corpus says are there and the file has not
    samples: bytes = b""  # a hash of all samples at 16 bits, mono, as they are in the file
    sketch: bytes = b""  # hashes of 64 bits, see fingerprint.py
    peak: float = 0.0
    clipped: float = 0.0  # share of samples on a flat top, or at full scale
    loudest: float = 0.0  # rms of the loudest frame
    silence: float = 0.0  # share of frames that are 35 dB below the loudest, or below -60 dB
    offset: float = 0.0  # mean of the samples
    drop: float | None = None  # dB from 3.0-3.6 kHz to what is above 4.4; none if it cannot tell


def listen(place: Place) -> Heard:
    """Read and measure; never raises for what is in the file."""
    path, start, duration = place
    try:
        samples, rate, seconds, missing = _read(path, start, duration)
    except (OSError, RuntimeError, ValueError) as error:
        return Heard(error=str(error).splitlines()[0][:200] if str(error) else repr(error))
    if not len(samples) or not np.isfinite(samples).all():
        return Heard(error="no samples" if not len(samples) else "NaN or infinite samples")
    rms = _frames(samples, rate)
    loudest = float(rms.max())
    bits, loud = fingerprint(as_printed(samples, rate))
    return Heard(
        rate=rate,
        seconds=seconds,
        missing=missing,
        samples=hashlib.sha256(np.rint(samples * 32768).astype("<i4").tobytes()).digest()[:16],
        sketch=sketch(bits, loud).tobytes(),
        peak=float(np.abs(samples).max()),
        clipped=_clipped(samples),
        loudest=loudest,
        silence=float((rms < max(SILENCE, FAR_BELOW * loudest)).mean()),
        offset=float(samples.mean(dtype=np.float64)),
        drop=_drop(samples, rate),
    )


def printed(place: Place) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """The fingerprint of an utterance, for a comparison bit by bit."""
    path, start, duration = place
    samples, rate, _, _ = _read(path, start, min(duration or PRINTED, PRINTED))
    return fingerprint(as_printed(samples, rate))


def _read(
    path: Path, start: float, duration: float | None
) -> tuple[NDArray[float32], int, float, float]:
    """Mono samples at the file's rate, the rate, seconds, and seconds that the file lacks."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        rate = int(file.samplerate)
        left = file.frames - file.seek(min(round(start * rate), file.frames))
        wanted = left if duration is None else round(duration * rate)
        count = min(left, wanted)
        read = file.read(min(count, round(LONGEST * rate)), dtype="float32", always_2d=True)
    mono = read.mean(axis=1) if read.shape[1] > 1 else read[:, 0]
    short = max(0, wanted - left) + max(0, min(count, round(LONGEST * rate)) - len(read))
    return np.ascontiguousarray(mono), rate, count / rate, short / rate


def as_printed(samples: NDArray[float32], rate: int) -> NDArray[float32]:
    """The first seconds at the rate of fingerprints."""
    import soxr

    first = samples[: round(PRINTED * rate)]
    if rate == RATE or not len(first):
        return first
    resampled: NDArray[float32] = soxr.resample(first, rate, RATE, quality="HQ")
    return resampled


def _frames(samples: NDArray[float32], rate: int) -> NDArray[float32]:
    """Root mean square of frames side by side; of less than one frame, of all."""
    size = max(1, round(FRAME * rate))
    whole = len(samples) // size * size
    rows = samples[:whole].reshape(-1, size) if whole else samples[None]
    means: NDArray[float32] = np.sqrt(np.square(rows, dtype=float32).mean(1))
    return means


def _clipped(samples: NDArray[float32]) -> float:
    """Share of samples in runs of three or more at the highest level, or at full scale."""
    size = np.abs(samples)
    peak = float(size.max())
    if peak < 0.25:  # the top of a quiet tone is flat by rounding alone
        return 0.0
    top = np.concatenate([[False], size >= peak - 1.5 / 32768, [False]])
    edges = np.flatnonzero(np.diff(top.astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    flat = int(runs[runs >= 3].sum())
    full = int((size >= FULL_SCALE).sum())
    return max(flat, full) / len(samples)


def _drop(samples: NDArray[float32], rate: int) -> float | None:
    """How much less power there is above 4.4 kHz than below 3.6, in dB, by Welch's spectrum.

    The power is at least that of rounding to 16 bits, which hides what is below.
    """
    from scipy.signal import welch

    size = round(0.032 * rate)
    if rate < 12000 or len(samples) < size:
        return None
    hertz, power = welch(samples, rate, nperseg=size)
    rounding = 1 / 32768**2 / 12 / (rate / 2)
    low = power[(hertz >= 3000) & (hertz <= 3600)].mean()
    high = power[(hertz >= 4400) & (hertz <= min(7600, 0.47 * rate))].mean()
    if low < 30 * rounding:  # too quiet to tell
        return None
    return float(10 * np.log10(low / max(high, rounding)))
