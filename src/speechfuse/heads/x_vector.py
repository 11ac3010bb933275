"""The x-vector of SUPERB's speaker verification (Snyder et al. 2018; s3prl's sv_voxceleb1).

frames ─ Linear ─ TDNN 5 ─ TDNN 3, every 2nd ─ TDNN 3, every 3rd ─ TDNN 1 ─ TDNN 1 ─ mean, deviation
                                                             embedding ◄─ ReLU ─ Linear ◄─┘
                                      AM-softmax ◄─ ReLU ─ Linear ◄─┘
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.heads.am_softmax import am_softmax
from speechfuse.ops import exporting, masked_mean, masked_std, zero_padding
from speechfuse.types import Count, Frames, Positive, Share, Tokens

CONTEXTS, DILATIONS = (5, 3, 3, 1, 1), (1, 2, 3, 1, 1)
LOST = sum((c - 1) * d for c, d in zip(CONTEXTS, DILATIONS, strict=True))  # frames at the edges


class XVector(Head):
    """Time-delay layers without padding, statistics pooling, two linear layers.

    An utterance of n frames has n - 14 after the layers, none of which reads padding; of 14 frames
    or fewer one is left, which reads zeros beyond the end.
    """

    predicts: Prediction = "vector"

    def __init__(
        self,
        in_dim: int,
        *,
        num_classes: int,
        dim: Count = 512,
        pooled_dim: Count = 1500,
        scale: Positive = 30.0,
        margin: Share = 0.4,
    ) -> None:
        """dim: of the layers and the embedding. pooled_dim: of the last layer over time.

        scale, margin: of AM-softmax.
        """
        super().__init__()
        self.project = nn.Linear(in_dim, dim)
        widths = [dim, dim, dim, dim, dim, pooled_dim]
        self.layers = nn.ModuleList(
            nn.Conv1d(widths[i], widths[i + 1], context, dilation=dilation)
            for i, (context, dilation) in enumerate(zip(CONTEXTS, DILATIONS, strict=True))
        )
        self.embed = nn.Linear(2 * pooled_dim, dim)
        self.last = nn.Linear(dim, dim)
        self.speakers = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.xavier_normal_(self.speakers)
        self.scale, self.margin = scale, margin

    def embedding(self, frames: Frames) -> Tensor:
        """One vector per utterance, (B, dim)."""
        # Zeros after the projection, so that a short utterance reads the same in every batch.
        hidden = zero_padding(self.project(frames.hidden), frames.lengths).transpose(1, 2)
        hidden = F.pad(hidden, (0, LOST if exporting() else max(0, LOST + 1 - hidden.shape[2])))
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        lengths = (frames.lengths - LOST).clamp_min(1)
        rows = hidden.transpose(1, 2)
        pooled = torch.cat([masked_mean(rows, lengths), masked_std(rows, lengths)], dim=-1)
        return F.relu(self.embed(pooled))

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        vectors = F.relu(self.last(self.embedding(frames)))
        return am_softmax(vectors, self.speakers, targets, self.scale, self.margin)

    def predict(self, frames: Frames) -> list[Tensor]:
        return list(self.embedding(frames).float().cpu())
