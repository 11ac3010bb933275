"""Files in, 16 kHz mono samples out; and the log-mel spectrogram that models start from."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from speechfuse.errors import DataError
from speechfuse.types import Waveforms

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

SAMPLE_RATE = 16000  # Hz, inside the library
REMEDY = "convert it with: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac"


def read_audio(path: Path, start: float = 0.0, duration: float | None = None) -> NDArray[float32]:
    """Mono samples at 16 kHz of any file that libsndfile reads (WAV, FLAC, OGG, MP3, ...).

    Channels are averaged and other rates resampled with soxr. start, duration: seconds.

    Raises:
        DataError: the file is missing, unreadable, empty or broken off, or holds NaN or infinite
            samples.
    """
    import soundfile
    import soxr

    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"no audio file at {path}, found {found}; check the path")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            left = file.frames - file.seek(min(round(start * rate), file.frames))
            count = -1 if duration is None else round(duration * rate)
            samples = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"cannot decode {path} ({error}); {REMEDY}") from error
    if not len(samples):
        raise DataError(f"{path} holds no samples from {start:g} s on; remove it or mend its times")
    promised = left if duration is None else min(left, count)
    if len(samples) < 0.9 * promised:  # a header may be a little wrong, as of some MP3 files
        raise DataError(
            f"{path} breaks off after {len(samples) / rate:.2f} of {promised / rate:.2f} s; "
            f"copy it again, or {REMEDY}"
        )
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise DataError(f"{path} holds {bad} NaN or infinite samples; make the file again")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate == SAMPLE_RATE:
        return np.ascontiguousarray(mono)
    resampled: NDArray[float32] = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(resampled):
        raise DataError(f"{path} has {len(mono)} samples at {rate} Hz, too few to resample")
    return resampled


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
    taper = torch.hann_window(window, device=samples.device)
    spectrum = torch.stft(samples, window, hop, window=taper, center=False, return_complex=True)
    power = spectrum.abs().square()
    filters = mel_filters(num_mels, window // 2 + 1).to(samples.device)
    with torch.autocast(samples.device.type, enabled=False):  # ten decades, in mixed training too
        return torch.clamp(filters.T @ power, min=1e-10).log10()
