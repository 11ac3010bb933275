"""Pitch and energy of every frame of an encoder, measured on the audio."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy import float32, float64
from numpy.typing import NDArray
from torch import Tensor

from speechfuse.audio import SAMPLE_RATE, read_audio
from speechfuse.errors import DataError
from speechfuse.types import Utterance

STEP = 0.005  # seconds between two measurements of pitch
LOWEST, HIGHEST = 65.0, 600.0  # Hz
WINDOW = 0.025  # seconds of audio that a frame's energy is of
FLOOR = 1e-8  # mean square of the quietest frame that counts as such, 80 dB below full scale


def frame_acoustics(utterance: Utterance, frame_rate: float) -> Tensor:
    """log F0, NaN where a frame is not voiced, and log energy: (F, 2) float64.

    Frame j is centred on (j + 0.5) / frame_rate seconds; the last one is past the end of the
    clip, so that no encoder has more.
    """
    samples = read_audio(utterance.audio, utterance.start, utterance.duration)
    count = math.ceil(len(samples) / SAMPLE_RATE * frame_rate) + 1
    times: NDArray[float64] = (np.arange(count, dtype=float64) + 0.5) / frame_rate
    pitch, energy = _log_pitch(samples, times), _log_energy(samples, times)
    return torch.from_numpy(np.stack([pitch, energy], axis=1))


def _log_pitch(samples: NDArray[float32], times: NDArray[float64]) -> NDArray[float64]:
    """The measurement nearest to each time, by Praat's autocorrelation (Boersma 1993)."""
    found = np.full(len(times), np.nan)
    if len(samples) < 4 * SAMPLE_RATE / LOWEST:  # Praat wants three periods and a little more
        return found
    sound = praat().Sound(samples.astype(float64), float(SAMPLE_RATE))
    track = sound.to_pitch_ac(time_step=STEP, pitch_floor=LOWEST, pitch_ceiling=HIGHEST)
    hertz = track.selected_array["frequency"]  # zero where there is no voice
    nearest = np.rint((times - track.xs()[0]) / STEP).astype(int)
    inside = (nearest >= 0) & (nearest < len(hertz))
    inside[inside] = hertz[nearest[inside]] > 0
    found[inside] = np.log(hertz[nearest[inside]])
    return found


def _log_energy(samples: NDArray[float32], times: NDArray[float64]) -> NDArray[float64]:
    """Natural logarithm of the mean square in a window around each time."""
    sums = np.concatenate([[0.0], np.square(samples, dtype=float64).cumsum()])
    half = round(WINDOW / 2 * SAMPLE_RATE)
    centres = np.rint(times * SAMPLE_RATE).astype(int)
    first = np.clip(centres - half, 0, len(samples))
    last = np.clip(centres + half, 0, len(samples))
    squares = (sums[last] - sums[first]) / np.maximum(last - first, 1)
    logarithms: NDArray[float64] = np.log(np.maximum(squares, FLOOR))
    return logarithms


@lru_cache
def praat() -> Any:
    """Praat as a library.

    Raises:
        DataError: it is not installed.
    """
    try:
        import parselmouth
    except ImportError as error:
        raise DataError(
            "pitch is measured by Praat, which is not installed; pip install 'speechfuse[probe]', "
            "or leave pitch out of properties"
        ) from error
    return parselmouth
