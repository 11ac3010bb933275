"""Aligned stacks side by side (CHConv; Shih & Harwath 2025, sec. 3.2, arXiv:2511.08389)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speechfuse.contracts import Merge
from speechfuse.types import LayerStack, StackSpec


class Concat(Merge):
    """merged.layers[l] = concatenation of stack.layers[l] over features, sum of widths wide.

    What the interface makes of it is projected back to the widest model by one linear layer: the
    "dense projection after concatenation" of the paper.
    """

    def __init__(self, specs: Sequence[StackSpec]) -> None:
        super().__init__()
        self.spec = StackSpec(specs[0].num_layers, sum(s.dim for s in specs), specs[0].frame_rate)
        self.project_to = max(s.dim for s in specs) if len(specs) > 1 else None

    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack:
        if len(stacks) == 1:
            return stacks[0]
        layers = tuple(
            torch.cat(same_depth, dim=-1)
            for same_depth in zip(*(stack.layers for stack in stacks), strict=True)
        )
        return LayerStack(layers, stacks[0].lengths, stacks[0].frame_rate)
