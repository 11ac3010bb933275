"""Read what speech.py wrote: memory-mapped samples and the list of utterances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 400  # last utterances, never trained on


class Speech:
    """Samples end to end, and where each utterance lies."""

    def __init__(self, folder: Path) -> None:
        self.clean = np.memmap(folder / "clean.i16", dtype="<i2", mode="r")
        self.noisy = np.memmap(folder / "noisy.i16", dtype="<i2", mode="r")
        lines = (folder / "utterances.jsonl").read_text().splitlines()
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def clip(self, start: int, length: int, *, clean: bool = False) -> Tensor:
        """float32 samples in [-1, 1]."""
        source = self.clean if clean else self.noisy
        return torch.from_numpy(source[start : start + length].astype(np.float32) / 32768)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 8 % of the steps, then a cosine down to 2 % of the peak."""
    warm = max(1, round(0.08 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done))))
