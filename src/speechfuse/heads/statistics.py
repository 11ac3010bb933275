"""Nothing trained: mean and standard deviation over frames as an embedding, a probe of features."""

from __future__ import annotations

import torch
from torch import Tensor

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.ops import masked_mean, masked_std
from speechfuse.types import Frames, Tokens


class Statistics(Head):
    """What a fixed layer tells of a speaker before anything is learned."""

    predicts: Prediction = "vector"

    def __init__(self, in_dim: int, *, num_classes: int) -> None:
        super().__init__()

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        return LossSum(frames.hidden.new_zeros(()), len(targets.ids))

    def embedding(self, frames: Frames) -> Tensor:
        """One vector per utterance, (B, 2 * in_dim)."""
        mean = masked_mean(frames.hidden, frames.lengths)
        deviation = masked_std(frames.hidden, frames.lengths)
        return torch.cat([mean, deviation], dim=-1)

    def predict(self, frames: Frames) -> list[Tensor]:
        return list(self.embedding(frames).float().cpu())
