"""How far apart two weightings of layers are, and how even one is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechfuse.metrics import SpeakerSums, share_right


def js_bits(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last axis in bits, 0 to 1: (..., L) -> (...).

    >>> js_bits(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item()
    1.0
    """
    mixed = torch.special.entr((one + other) / 2).sum(-1)
    alone = (torch.special.entr(one).sum(-1) + torch.special.entr(other).sum(-1)) / 2
    bits: Tensor = (mixed - alone) / torch.log(torch.tensor(2.0, dtype=one.dtype))
    return bits.clamp_min(0)


def evenness(weights: Tensor) -> Tensor:
    """Entropy over the last axis as a share of that of equal weights."""
    most = torch.log(torch.tensor(float(weights.shape[-1]), dtype=weights.dtype))
    share: Tensor = torch.special.entr(weights).sum(-1) / most
    return share


def mean_over_utterances(values: Tensor, speakers: Sequence[str]) -> SpeakerSums:
    """The mean of one value for each utterance, (U,), by the speakers it is resampled over."""
    names = sorted(set(speakers))
    rows = np.zeros((len(names), 2))
    for value, speaker in zip(values.tolist(), speakers, strict=True):
        rows[names.index(speaker)] += value, 1
    return SpeakerSums(names, rows, share_right)
