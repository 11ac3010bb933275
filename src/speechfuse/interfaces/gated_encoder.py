"""HarmoniFuse's fusion of encoder layers, one softmax for each task (Si et al. 2025, sec. 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechfuse.contracts import Interface, LayerStream
from speechfuse.interfaces.weighted_sum import WeightedSumStream
from speechfuse.ops import mix
from speechfuse.types import Frames, LayerStack, StackSpec

SHARED = "shared"


class GatedEncoder(Interface):
    """One learned logit for each layer and task; zero logits start as the plain mean.

        weights = softmax(logits[task])                              (L,)
        hidden[b, t] = sum over l of weights[l] * stack.layers[l][b, t]

    The paper's layers are the blocks 1..L, without what the first block reads: with this interface
    a recipe drops state 0 of every encoder (fusion.drop_state_0). "Gated" is the paper's word for
    what is a scalar mix; its equation has no task index, its text says "task-specific": both are
    here (arXiv:2509.18570, docs/adr/0012).
    """

    linear = True

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        gate: Literal["per_task", "shared"] = "per_task",
    ) -> None:
        """gate: weights of each task's own, or the same for all."""
        super().__init__()
        self.out_dim = spec.dim
        self.gate = gate
        names = tasks if gate == "per_task" else [SHARED]
        self.logits = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(spec.num_layers)) for name in names}
        )

    def mixture(self, task: str) -> Tensor:
        logits: Tensor = self.logits[task if self.gate == "per_task" else SHARED]
        return logits.softmax(0)

    def learned_weights(self) -> dict[str, Tensor]:
        """By task, or one for all."""
        return {name: logits.softmax(0) for name, logits in self.logits.items()}

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """The same for every frame, (L,)."""
        return {"": self.mixture(task)}

    def forward(self, stack: LayerStack, task: str) -> Frames:
        return Frames(mix(self.mixture(task), stack.layers), stack.lengths, stack.frame_rate)

    def stream(self, task: str) -> LayerStream:
        return WeightedSumStream(self.mixture(task).detach())
