"""One class for each of several questions: SUPERB's intent classification (Lugosch et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from speechfuse.contracts import LossSum, Prediction
from speechfuse.heads.classifier import Classifier
from speechfuse.types import Frames, Share, Tokens


class Slots(Classifier):
    """A classifier whose scores are those of all slots side by side; the losses are summed."""

    predicts: Prediction = "classes"

    def __init__(
        self,
        in_dim: int,
        *,
        slot_sizes: Sequence[int],
        project: Annotated[int, Field(ge=0)] = 0,
        mean_std: bool = False,
        standardize: bool = False,
        dropout: Share = 0.0,
    ) -> None:
        """Options as of head classifier; slot_sizes: classes of each slot, from the task."""
        super().__init__(
            in_dim,
            num_classes=sum(slot_sizes),
            project=project,
            mean_std=mean_std,
            standardize=standardize,
            dropout=dropout,
        )
        self.slot_sizes = list(slot_sizes)

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        slots = self.logits(frames).float().split(self.slot_sizes, dim=-1)
        losses = [
            F.cross_entropy(logits, targets.ids[:, i], reduction="sum")
            for i, logits in enumerate(slots)
        ]
        return LossSum(torch.stack(losses).sum(), len(targets.ids))

    def predict(self, frames: Frames) -> list[list[int]]:  # type: ignore[override]  # several
        slots = self.logits(frames).split(self.slot_sizes, dim=-1)
        found: list[list[int]] = torch.stack([row.argmax(-1) for row in slots], dim=-1).tolist()
        return found
