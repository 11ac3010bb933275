"""Files in, 16 kHz mono samples out; and the log-mel spectrogram that models start from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from speechfuse.errors import DataError
from speechfuse.ops import exporting
from speechfuse.types import Waveforms

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

SAMPLE_RATE = 16000  # Hz, inside the library
RATES, CHANNELS = (1000, 768_000), 64  # of a file: outside them a header is damaged or a trap
LOUDEST = 2.0**31  # of a sample; what is far louder becomes infinite on the way
BLOCK_VALUES = 1 << 20  # read at once, of all channels
REMEDY = "convert it with: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac"


def read_audio(path: Path, start: float = 0.0, duration: float | None = None) -> NDArray[float32]:
    """Mono samples at 16 kHz of any file that libsndfile reads (WAV, FLAC, OGG, MP3, ...).

    Channels are averaged and other rates resampled with soxr. start, duration: seconds.

    Raises:
        DataError: the file is missing, unreadable, empty or broken off, or holds NaN or infinite
            samples.
    """
    import soxr

    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"no audio file at {path}, found {found}; check the path")
    with open_sound(path, str(path)) as sound:
        rate = sound.samplerate
        first = min(round(start * rate), sound.frames)
        if first and sound.seekable():
            sound.seek(first)
        elif first:  # as of GSM in WAV
            _ = sum(len(block) for block in mono_blocks(sound, first, str(path)))
        left = sound.frames - first
        promised = left if duration is None else min(left, round(duration * rate))
        blocks = [*mono_blocks(sound, None if duration is None else promised, str(path))]
    if not blocks:
        raise DataError(f"{path} holds no samples from {start:g} s on; remove it or mend its times")
    mono = np.concatenate(blocks)
    check_whole(len(mono), promised, rate, str(path))
    if rate == SAMPLE_RATE:
        return mono
    resampled: NDArray[float32] = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(resampled):
        raise DataError(f"{path} has {len(mono)} samples at {rate} Hz, too few to resample")
    return resampled


def sound_seconds(path: Path | BinaryIO, name: str) -> float:
    """How long a file is, as its header says. Raises DataError as `open_sound` does."""
    with open_sound(path, name) as sound:
        return float(sound.frames / sound.samplerate)


@contextmanager
def open_sound(file: Path | BinaryIO, name: str) -> Iterator[Any]:
    """A file that libsndfile reads, with a header that sound can have.

    Raises:
        DataError: it cannot be opened, or what is done within cannot be done with it.
    """
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            rate, channels = sound.samplerate, sound.channels
            if not RATES[0] <= rate <= RATES[1] or channels > CHANNELS:
                raise DataError(
                    f"{name} has {channels} channels at {rate} Hz, expected at most {CHANNELS} at "
                    f"{RATES[0]} to {RATES[1]} Hz; {REMEDY}"
                )
            yield sound
    except DataError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, TypeError, OSError) as error:
        raise DataError(f"cannot decode {name} ({error}); {REMEDY}") from error


def mono_blocks(sound: Any, count: int | None, name: str) -> Iterator[NDArray[float32]]:
    """The channels' mean, block by block: a header may promise more than memory can hold.

    count: samples of a channel; all, if left out.

    Raises:
        DataError: NaN or infinite samples.
    """
    size, left = BLOCK_VALUES // sound.channels, math.inf if count is None else count
    while left:
        asked = int(min(size, left))
        block = sound.read(asked, dtype="float32", always_2d=True)
        check_samples(block, name)
        left -= len(block)
        if len(block):
            yield np.ascontiguousarray(block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])
        if len(block) < asked:
            break


def check_samples(samples: NDArray[float32], name: str) -> None:
    """Raises DataError if no sound has such samples; integers that were not scaled pass."""
    if bad := int((~(np.abs(samples) <= LOUDEST)).sum()):
        raise DataError(
            f"{name} holds {bad} NaN or infinite samples, or beyond {LOUDEST:.0e}; make it again"
        )


def check_whole(found: int, promised: int, rate: int, name: str) -> None:
    """Raises DataError if a file ends too early; a header may be a little wrong, as of some MP3."""
    if found < 0.9 * promised:
        raise DataError(
            f"{name} breaks off after {found / rate:.2f} of {promised / rate:.2f} s; "
            f"copy it again, or {REMEDY}"
        )


def pad_clips(clips: list[Tensor]) -> Waveforms:
    """Clips (S_b,) at 16 kHz side by side, zeros on the right."""
    lengths = torch.tensor([len(clip) for clip in clips])
    samples = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return Waveforms(samples, lengths, SAMPLE_RATE)


@lru_cache
def mel_filters(num_mels: int, num_bins: int) -> Tensor:
    """Slaney's triangular filters up to 8 kHz, (num_bins, num_mels), as Whisper uses them."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=num_bins,
        num_mel_filters=num_mels,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


def mel_macs(num_mels: int, window: int = 400) -> float:
    """Multiply-adds of one spectrogram frame: an FFT (5/2 n log2 n) and the filters."""
    return 2.5 * window * math.log2(window) + (window // 2 + 1) * num_mels


def log_mel(samples: Tensor, num_mels: int, window: int = 400, hop: int = 160) -> Tensor:
    """log10 of mel energies, at least -10; frame j is centred on sample j * hop.

    samples: (B, S), already padded by the caller with half a window on both sides.
    Returns (B, num_mels, T) with T = (S - window) // hop + 1.
    """
    if exporting():
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        tapered = torch.from_numpy(taper[:, None] * waves(window, window))
        power = power_by_products(samples, tapered, hop).float().transpose(1, 2)
    else:
        hann = torch.hann_window(window, device=samples.device)
        spectrum = torch.stft(samples, window, hop, window=hann, center=False, return_complex=True)
        power = spectrum.abs().square()
    filters = mel_filters(num_mels, window // 2 + 1).to(samples.device)
    with torch.autocast(samples.device.type, enabled=False):  # ten decades, in mixed training too
        return torch.clamp(filters.T @ power, min=1e-10).log10()


def power_by_products(samples: Tensor, waves: Tensor, hop: int) -> Tensor:
    """|Fourier transform|^2 of windows as products with (window, 2 bins): (B, T, bins).

    For a graph, whose runtimes transform slowly or not at all; in double precision, as sums of
    large terms are to be small. waves: cosines side by side with sines, tapered.
    """
    window = len(waves)
    starts = torch.arange((samples.shape[1] - window) // hop + 1)[:, None] * hop
    parts = samples[:, starts + torch.arange(window)].double() @ waves
    real, imaginary = parts.chunk(2, dim=-1)
    return real.square() + imaginary.square()


def waves(window: int, transformed: int) -> NDArray[np.float64]:
    """Cosines and sines of a Fourier transform of that many samples, at the first `window`."""
    turns = np.outer(np.arange(window), np.arange(transformed // 2 + 1)) / transformed
    return np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
