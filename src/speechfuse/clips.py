"""The audio of utterances side by side, as an upstream reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy import float32
from numpy.typing import NDArray

from speechfuse.audio import SAMPLE_RATE, pad_clips, read_audio
from speechfuse.contracts import Upstream
from speechfuse.errors import DataError
from speechfuse.types import Utterance, Waveforms


def read_batch(
    utterances: Sequence[Utterance], upstream: Upstream, noise_snr: float | None = None
) -> Waveforms:
    """Audio of several utterances; a clip too short for the upstream is named.

    Raises:
        DataError: unreadable audio, or a clip shorter than the receptive field.
    """
    clips = []
    for u in utterances:
        samples = read_audio(u.audio, u.start, u.duration)
        if len(samples) < upstream.plan.min_samples:
            raise DataError(
                f"utterance {u.id} ({u.audio.name}) has {len(samples)} samples at "
                f"{SAMPLE_RATE} Hz, the upstream needs {upstream.plan.min_samples} for one frame; "
                "leave it out"
            )
        if noise_snr is not None:
            samples = _with_noise(samples, noise_snr)
        clips.append(torch.from_numpy(samples))
    return pad_clips(clips)


def _with_noise(samples: NDArray[float32], snr: float) -> NDArray[float32]:
    """Pink noise mixed in, the same for the same samples; the level of the speech stays."""
    seed = int.from_bytes(hashlib.sha256(samples.tobytes()).digest()[:8], "little")
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(samples)))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(samples))
    power = float(np.mean(samples.astype(np.float64) ** 2)), float(np.mean(noise**2))
    gain = (power[0] / max(power[1], 1e-20)) ** 0.5 * 10 ** (-snr / 20)
    mixed: NDArray[float32] = (samples + gain * noise).astype(np.float32)
    return mixed
