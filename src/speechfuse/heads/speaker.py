"""Speaker embeddings: statistics pooling and AM-softmax (Wang et al. 2018, arXiv:1801.05599)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.heads.am_softmax import am_softmax
from speechfuse.heads.standardize import Standardize
from speechfuse.ops import masked_mean, masked_std
from speechfuse.types import Count, Frames, Positive, Share, Tokens


class Speaker(Head):
    """Mean and standard deviation over frames, one linear layer, cosine to each training speaker.

    logits = scale * (cosine - margin at the true speaker)
    """

    predicts: Prediction = "vector"

    def __init__(
        self,
        in_dim: int,
        *,
        num_classes: int,
        embedding_dim: Count = 192,
        scale: Positive = 30.0,
        margin: Share = 0.2,
        standardize: bool = False,
    ) -> None:
        """embedding_dim: width of what is compared. scale, margin: of AM-softmax.

        standardize: each dimension over the training set in place of a layer norm.
        """
        super().__init__()
        self.norm = Standardize(2 * in_dim) if standardize else nn.LayerNorm(2 * in_dim)
        self.embed = nn.Linear(2 * in_dim, embedding_dim)
        self.speakers = nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)
        self.scale, self.margin = scale, margin

    def embedding(self, frames: Frames) -> Tensor:
        """One vector per utterance, (B, embedding_dim)."""
        mean = masked_mean(frames.hidden, frames.lengths)
        deviation = masked_std(frames.hidden, frames.lengths)
        vector: Tensor = self.embed(self.norm(torch.cat([mean, deviation], dim=-1)))
        return vector

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        vectors = self.embedding(frames)
        return am_softmax(vectors, self.speakers, targets, self.scale, self.margin)

    def predict(self, frames: Frames) -> list[Tensor]:
        return list(self.embedding(frames).float().cpu())
