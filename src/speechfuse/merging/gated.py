"""Weighted sum of aligned stacks, one learned weight for each model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.alignment import check_one_width
from speechfuse.contracts import Merge
from speechfuse.ops import mix
from speechfuse.types import LayerStack, StackSpec


class Gated(Merge):
    """One learned logit per model, shared by its layers; zero logits start as the plain mean.

        weights = softmax(logits)                                        (N,)
        merged.layers[l] = sum over models n of weights[n] * stacks[n].layers[l]

    The weighted sum of SUPERB (Yang et al. 2021, arXiv:2105.01051), over models in place of layers.
    """

    alike = True

    def __init__(self, specs: Sequence[StackSpec]) -> None:
        """Raises ShapeError for upstreams of different width."""
        super().__init__()
        check_one_width(specs, "gated")
        self.spec = specs[0]
        # A single model has nothing to weigh: its logit would never get a gradient.
        self.logits = nn.Parameter(torch.zeros(len(specs))) if len(specs) > 1 else None

    def model_weights(self) -> Tensor | None:
        return None if self.logits is None else self.logits.softmax(0)

    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack:
        first = stacks[0]
        weights = self.model_weights()
        if weights is None:
            return first
        by_depth = zip(*(stack.layers for stack in stacks), strict=True)
        layers = tuple(mix(weights, same_depth) for same_depth in by_depth)
        return LayerStack(layers, first.lengths, first.frame_rate)
