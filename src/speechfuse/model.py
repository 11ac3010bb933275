"""Fusion and heads put together. Knows the roles and no concrete part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from speechfuse.contracts import Fusion, Head, LossSum
from speechfuse.types import Frames, LayerStack, Tokens

SHARED = "all_tasks"


class FusionModel(nn.Module):
    """The trained part: stacks -> fusion -> head.

    Upstreams are not inside: they are frozen, their stacks come from a store.
    """

    def __init__(
        self,
        fusions: Mapping[str, Fusion],
        heads: Mapping[str, Head],
        before: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """fusions: by task, or one under SHARED that all tasks read. heads: by task.

        before: what is done to the frames of a task before its head reads them, if anything.
        """
        super().__init__()
        self.fusions = nn.ModuleDict(fusions)
        self.before = nn.ModuleDict(before or {})
        self.heads = nn.ModuleDict(heads)

    def fusion_of(self, task: str) -> Fusion:
        fusion = self.fusions[SHARED if SHARED in self.fusions else task]
        assert isinstance(fusion, Fusion)
        return fusion

    def head_of(self, task: str) -> Head:
        head = self.heads[task]
        assert isinstance(head, Head)
        return head

    def fuse(self, stacks: Sequence[LayerStack], task: str) -> Frames:
        """What the task's head reads."""
        frames: Frames = self.fusion_of(task)(stacks, task)
        if task in self.before:
            frames = self.before[task](frames)
        return frames

    def loss(self, stacks: Sequence[LayerStack], task: str, targets: Tokens) -> LossSum:
        return self.head_of(task).loss(self.fuse(stacks, task), targets)

    def predict(self, stacks: Sequence[LayerStack], task: str) -> list[Any]:
        return self.head_of(task).predict(self.fuse(stacks, task))

    def parameters_of(self, task: str) -> int:
        """Trained parameters that this task uses."""
        parts = (self.fusion_of(task), self.head_of(task))
        return sum(p.numel() for part in parts for p in part.parameters())
