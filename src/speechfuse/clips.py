"""The audio of utterances side by side, as an upstream reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy import float32
from numpy.typing import NDArray

from speechfuse.alter import altered, made, mixed
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
        samples = _read(u)
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


def _read(u: Utterance) -> NDArray[float32]:
    """Samples of an utterance as it is heard."""
    if u.alteration is None:
        return read_audio(u.audio, u.start, u.duration)
    spoken = None if u.duration is None else u.duration * u.alteration.speed
    return altered(read_audio(u.audio, u.start, spoken), u.alteration)


def _with_noise(samples: NDArray[float32], snr: float) -> NDArray[float32]:
    """Pink noise mixed in, the same for the same samples; the level of the speech stays."""
    seed = int.from_bytes(hashlib.sha256(samples.tobytes()).digest()[:8], "little")
    return mixed(samples, made("pink", len(samples), np.random.default_rng(seed)), snr)
