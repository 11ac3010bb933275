"""Whatever holds sound, as stretches of 16 kHz mono samples that fit into memory.

A path, a file object that libsndfile reads, samples with their rate, or what datasets gives: a
mapping with `array` and `sampling_rate`. Short recordings are read at once, as for training; long
ones are read, resampled and cut bit by bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from speechfuse.audio import (
    CHANNELS,
    RATES,
    SAMPLE_RATE,
    check_samples,
    check_whole,
    mono_blocks,
    open_sound,
    read_audio,
    sound_seconds,
)
from speechfuse.errors import DataError
from speechfuse.types import Progress

FADE_SECONDS = 0.2  # over which a pause is looked for
Samples = NDArray[float32]


class Recording:
    """One thing that was given, and what it is called."""

    def __init__(self, given: Any, number: int = 1) -> None:
        """number: what it is called if it has no name.

        Raises:
            DataError: nothing that holds sound.
        """
        self.given = given
        self.samples: Samples | None = None
        if isinstance(given, str | os.PathLike):
            self.name = os.fspath(given)
            return
        if hasattr(given, "read"):
            self.name = str(getattr(given, "name", f"recording {number}"))
            if isinstance(given, TextIOBase):
                raise DataError(f"{self.name} is open as text; open it with mode 'rb'")
            return
        self.name = f"recording {number}"
        if isinstance(given, Mapping) and {"array", "sampling_rate"} <= set(given):
            self.name = str(given.get("path") or self.name)
            given = (given["array"], given["sampling_rate"])
        if not isinstance(given, tuple) or len(given) != 2:
            raise DataError(
                f"{self.name} is {_named(given)}; give a path, an open file, or samples with their "
                "rate as (samples, rate)"
            )
        self.samples = _mono(*given, self.name)

    def stretches(self, longest: float) -> Iterator[tuple[float, Samples]]:
        """(start in seconds, samples) one after another, none longer than `longest` seconds.

        Raises:
            DataError: it cannot be read, or breaks off.
        """
        if self.samples is not None:
            yield from cut(iter([self.samples]), longest)
            return
        name = self.name
        if isinstance(self.given, str | os.PathLike):
            path = Path(self.given)
            if not path.is_file() or sound_seconds(path, name) <= longest:
                yield 0.0, read_audio(path)
                return
            yield from cut(_blocks(path, name), longest)
            return
        yield from cut(_blocks(self.given, name), longest)


def seconds_of(given: Any) -> float:
    """How long something is, as far as that is known without reading it; else 0."""
    if isinstance(given, Mapping):
        given = (given.get("array"), given.get("sampling_rate"))
    try:
        if isinstance(given, str | os.PathLike):
            return sound_seconds(Path(given), os.fspath(given))
        if isinstance(given, tuple):
            return float(len(given[0]) / given[1])
        place = given.tell()
        length = sound_seconds(given, "")
        given.seek(place)
    except (
        DataError,
        OSError,
        AttributeError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
    ):
        return 0.0  # whoever reads it says what is wrong
    return length


def of_all(many: Sequence[Any], progress: Progress | None) -> Progress | None:
    """Told of seconds without an end, it tells of how many these recordings have, if that is known.

    Headers are a little wrong, so the last second is told when the end is.
    """
    total = math.ceil(sum(seconds_of(one) for one in many)) if progress else 0
    if progress is None or not total:
        return progress

    def tell(what: str, done: int, known: int) -> None:
        progress(what, total if done == known else min(done, total - 1), total)

    return tell


def cut(blocks: Iterator[Samples], longest: float) -> Iterator[tuple[float, Samples]]:
    """Samples of any length in stretches of at most `longest` seconds.

    Each but the last ends where it is quietest in its second half, in the middle of a pause.
    """
    most, start = round(longest * SAMPLE_RATE), 0
    held: Samples = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > most:
            end = quietest(held[:most])
            yield start / SAMPLE_RATE, held[:end]
            held, start = held[end:], start + end
    if len(held):
        yield start / SAMPLE_RATE, held


def quietest(samples: Samples) -> int:
    """The middle of the quietest fifth of a second in the second half."""
    hop = SAMPLE_RATE // 100
    half = len(samples) // 2
    tail = samples[half : half + (len(samples) - half) // hop * hop].astype(np.float64)
    energies = np.square(tail).reshape(-1, hop).sum(1)
    width = min(round(FADE_SECONDS * 100), len(energies))
    if width == 0:
        return len(samples)
    sums = np.convolve(energies, np.ones(width), "valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))  # of equal ones the last
    return half + last * hop + width * hop // 2


def _blocks(file: Path | BinaryIO, name: str) -> Iterator[Samples]:
    """16 kHz mono, block by block."""
    import soxr

    read = 0
    with open_sound(file, name) as sound:
        rate = sound.samplerate
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        for mono in mono_blocks(sound, None, name):
            read += len(mono)
            done = mono if rate == SAMPLE_RATE else stream.resample_chunk(mono)
            if len(done):
                yield done
        check_whole(read, sound.frames, rate, name)
        if rate != SAMPLE_RATE and len(
            rest := stream.resample_chunk(np.zeros(0, np.float32), last=True)
        ):
            yield rest
    if not read:
        raise DataError(f"{name} holds no samples; leave it out")


def _mono(samples: Any, rate: Any, name: str) -> Samples:
    """Samples (S,) or (S, channels), float in [-1, 1] or integers, at any rate."""
    import soxr

    array = np.asarray(samples)
    if not array.ndim and np.ndim(rate):
        raise DataError(f"{name} is (rate, samples); give (samples, rate)")
    number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if not number or not RATES[0] <= rate <= RATES[1]:
        raise DataError(
            f"{name} has a sample rate of {rate!r}; give it in Hz, {RATES[0]} to {RATES[1]}"
        )
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "fiu":
        raise DataError(
            f"{name} is an array of {array.dtype} of shape {array.shape}; give samples (S,) or "
            "(S, channels)"
        )
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise DataError(f"{name} has shape {array.shape}; give samples first, channels second")
    if array.ndim == 2 and array.shape[1] > CHANNELS:
        raise DataError(f"{name} has {array.shape[1]} channels; give at most {CHANNELS}")
    if array.dtype.kind in "iu":
        full = np.iinfo(array.dtype).max + 1.0
        middle = 0.0 if array.dtype.kind == "i" else full / 2
        array = (array.astype(np.float64) - middle) / (full - middle)
    mono = array.astype(np.float32)
    check_samples(mono, name)
    mono = mono.mean(axis=1) if mono.ndim == 2 else mono
    if float(rate) == SAMPLE_RATE:
        return np.ascontiguousarray(mono)
    resampled: Samples = soxr.resample(mono, float(rate), SAMPLE_RATE, quality="HQ")
    if not len(resampled):
        raise DataError(f"{name} has {len(mono)} samples at {rate} Hz, too few to resample")
    return resampled


def _named(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return f"{type(given).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
