"""Fusion and heads put together. Knows the roles and no concrete part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from speechfuse.contracts import Fusion, Head, LossSum, ScoresClasses, Upstream
from speechfuse.types import Frames, LayerStack, Tokens, Waveforms

SHARED = "all_tasks"


class FusionModel(nn.Module):
    """The trained part: stacks -> fusion -> head.

    Frozen upstreams are not inside, their stacks come from a store. One that is tuned is, and its
    input is the waveforms.
    """

    def __init__(
        self,
        fusions: Mapping[str, Fusion],
        heads: Mapping[str, Head],
        before: Mapping[str, nn.Module] | None = None,
        upstreams: Sequence[Upstream] = (),
    ) -> None:
        """fusions: by task, or one under SHARED that all tasks read. heads: by task.

        before: what is done to the frames of a task before its head reads them, if anything.
        upstreams: those that are tuned, in recipe order.
        """
        super().__init__()
        self.upstreams = nn.ModuleList(upstreams)
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

    def stacks(self, inputs: Sequence[Waveforms | LayerStack]) -> list[LayerStack]:
        """One for each upstream: what a store gave, or what a tuned upstream makes of waveforms."""
        tuned = iter(self.upstreams)
        return [next(tuned)(one) if isinstance(one, Waveforms) else one for one in inputs]

    def fuse(self, inputs: Sequence[Waveforms | LayerStack], task: str) -> Frames:
        """What the task's head reads."""
        frames: Frames = self.fusion_of(task)(self.stacks(inputs), task)
        if task in self.before:
            frames = self.before[task](frames)
        return frames

    def loss(self, inputs: Sequence[Waveforms | LayerStack], task: str, targets: Tokens) -> LossSum:
        return self.head_of(task).loss(self.fuse(inputs, task), targets)

    def predict(self, inputs: Sequence[Waveforms | LayerStack], task: str) -> list[Any]:
        return self.head_of(task).predict(self.fuse(inputs, task))

    def logits(self, inputs: Sequence[Waveforms | LayerStack], task: str) -> Tensor:
        """Unnormalised scores of the classes, (B, C), of a task whose head predicts one."""
        head = self.head_of(task)
        assert isinstance(head, ScoresClasses), f"{type(head).__name__} has no logits"
        return head.logits(self.fuse(inputs, task))

    def parameters_of(self, task: str) -> int:
        """Trained parameters that this task uses, those of tuned upstreams with them."""
        parts = (self.fusion_of(task), self.head_of(task))
        own = sum(p.numel() for part in parts for p in part.parameters())
        return own + sum(p.numel() for p in self.upstreams.parameters() if p.requires_grad)
