"""Sum of aligned stacks, layer by layer (Shih & Harwath 2025, sec. 3.2, arXiv:2511.08389)."""

from __future__ import annotations

from collections.abc import Sequence

from speechfuse.contracts import Merge
from speechfuse.errors import ShapeError
from speechfuse.types import LayerStack, StackSpec


class Add(Merge):
    """merged.layers[l] = sum over models of stack.layers[l]; every model must have one width."""

    def __init__(self, specs: Sequence[StackSpec]) -> None:
        """Raises ShapeError for upstreams of different width."""
        super().__init__()
        widths = [spec.dim for spec in specs]
        if len(set(widths)) > 1:
            raise ShapeError(
                f"add needs upstreams of one width, found {widths}; use merge kind 'concat'"
            )
        self.spec = specs[0]

    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack:
        first, *others = stacks
        if not others:
            return first
        layers = []
        for same_depth in zip(*(stack.layers for stack in stacks), strict=True):
            total = same_depth[0] + same_depth[1]
            for layer in same_depth[2:]:
                total = total.add_(layer) if not layer.requires_grad else total + layer
            layers.append(total)
        return LayerStack(tuple(layers), first.lengths, first.frame_rate)
