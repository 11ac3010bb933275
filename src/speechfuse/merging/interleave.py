"""Frames of aligned stacks in turn (Chiu et al. 2024, doi:10.21437/Interspeech.2024-849)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from speechfuse.alignment import check_one_width
from speechfuse.contracts import Merge
from speechfuse.types import LayerStack, StackSpec


class Interleave(Merge):
    """The models' frames alternate: T, lengths and frame rate times the number of models N.

        merged.layers[l][b, N * t + n] = stacks[n].layers[l][b, t]      (B, N * T, D)

        model 0   | a0 | a1 | .. |          merged   | a0 | b0 | a1 | b1 | .. | .. |
        model 1   | b0 | b1 | .. |                     padding stays at the end

    Nothing is learned. Chiu et al. interleave what remains of each model after its layers are
    mixed, which is order `layers_first`; under `merge_first` one interface mixes those of all.
    """

    alike = True

    def __init__(self, specs: Sequence[StackSpec]) -> None:
        """Raises ShapeError for upstreams of different width."""
        super().__init__()
        check_one_width(specs, "interleave")
        self.spec = replace(specs[0], frame_rate=len(specs) * specs[0].frame_rate)

    @classmethod
    def is_fixed(cls, options: Mapping[str, Any]) -> bool:
        return True

    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack:
        first, count = stacks[0], len(stacks)
        if count == 1:
            return first
        layers = tuple(
            torch.stack(same_depth, dim=2).flatten(1, 2)
            for same_depth in zip(*(stack.layers for stack in stacks), strict=True)
        )
        return LayerStack(layers, count * first.lengths, self.spec.frame_rate)
