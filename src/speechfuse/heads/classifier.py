"""One class for each utterance: masked mean pooling and a linear layer (SUPERB)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.heads.standardize import Standardize
from speechfuse.ops import masked_mean, masked_std
from speechfuse.types import Frames, Share, Tokens


class Classifier(Head):
    """Scores of classes from the mean over frames, for example of emotions.

    loss = sum_b w[b] * cross_entropy[b] / sum_b w[b]        w: of the true class
    """

    predicts: Prediction = "class"
    loss_weights: Tensor | None  # of each class, (C,)

    def __init__(
        self,
        in_dim: int,
        *,
        num_classes: int,
        loss_weights: Sequence[float] | None = None,
        project: Annotated[int, Field(ge=0)] = 0,
        mean_std: bool = False,
        standardize: bool = False,
        dropout: Share = 0.0,
        hidden: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        """loss_weights: of each class, from the task; all alike if left out.

        project: width of a linear layer on every frame first, without ReLU, as SUPERB's; 0 is
        none. mean_std: read the standard deviation over frames too.

        standardize, dropout: of what is pooled; standardised it is learned in far fewer steps.

        hidden: width of a linear layer with ReLU on every frame, before pooling; 0 is none.
        """
        super().__init__()
        self.mean_std = mean_std
        self.project = nn.Linear(in_dim, project) if project else nn.Identity()
        width = project or in_dim
        self.widen = nn.Sequential(nn.Linear(width, hidden), nn.ReLU()) if hidden else nn.Identity()
        dim = (hidden or width) * (2 if mean_std else 1)
        self.norm = Standardize(dim) if standardize else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)
        weights = None if loss_weights is None else torch.tensor(loss_weights)
        self.register_buffer("loss_weights", weights, persistent=False)  # the task keeps them

    @classmethod
    def reads_mean(cls, options: Mapping[str, Any]) -> bool:
        """Without the deviation, and without a ReLU on every frame."""
        return not options["mean_std"] and not options.get("hidden")

    def logits(self, frames: Frames) -> Tensor:
        """Unnormalised class scores, (B, C)."""
        hidden = self.widen(self.project(frames.hidden))
        pooled = masked_mean(hidden, frames.lengths)
        if self.mean_std:
            pooled = torch.cat([pooled, masked_std(hidden, frames.lengths)], dim=-1)
        logits: Tensor = self.linear(self.dropout(self.norm(pooled)))
        return logits

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        ids, weights = targets.ids[:, 0], self.loss_weights
        total = F.cross_entropy(self.logits(frames).float(), ids, weights, reduction="sum")
        return LossSum(total, len(ids) if weights is None else float(weights[ids].sum()))

    def predict(self, frames: Frames) -> list[int]:
        found: list[int] = self.logits(frames).argmax(-1).tolist()
        return found
