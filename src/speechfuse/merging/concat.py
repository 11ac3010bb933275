"""Aligned stacks side by side (CHConv; Shih & Harwath 2025, sec. 3.2, arXiv:2511.08389)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from speechfuse.contracts import Merge
from speechfuse.types import LayerStack, StackSpec


class Concat(Merge):
    """joined[l] = concatenation of stack.layers[l] over features, sum of widths wide.

    The paper's "dense projection matrix after concatenation" brings that to D, the width of the
    widest model. Where it stands can be read in several ways (docs/adr/0010-chconv.md); numbers
    are the parameters that are trained with HConv for two models of 13 x 768:

        after              the interface reads joined; one Linear follows it      18,877,440
        inside             the interface reads joined and ends in D itself        14,747,520
        before             Linear(joined[l]), one for all layers, then interface   5,605,248
        before_per_layer   Linear_l(joined[l]), one for each layer                19,770,240
        none               the interface reads joined, nothing follows it         17,697,024

    Linears start random. One model alone is left as it is.
    """

    def __init__(
        self,
        specs: Sequence[StackSpec],
        *,
        projection: Literal["after", "inside", "before", "before_per_layer", "none"] = "after",
    ) -> None:
        super().__init__()
        joined, widest = sum(s.dim for s in specs), max(s.dim for s in specs)
        self.spec = replace(specs[0], dim=joined)
        self.projections = nn.ModuleList()
        self.alike = len(specs) == 1 or projection != "before_per_layer"
        if len(specs) == 1:
            return
        if projection == "after":
            self.project_to = widest
        elif projection == "inside":
            self.interface_dim = widest
        elif projection != "none":
            count = self.spec.num_layers if projection == "before_per_layer" else 1
            self.projections.extend(nn.Linear(joined, widest) for _ in range(count))
            self.spec = replace(specs[0], dim=widest)

    @classmethod
    def is_fixed(cls, options: Mapping[str, Any]) -> bool:
        """A projection after the interface, or in it, is not the merge's."""
        return options["projection"] in ("after", "inside", "none")

    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack:
        if len(stacks) == 1:
            return stacks[0]
        layers = []
        for index, same_depth in enumerate(zip(*(stack.layers for stack in stacks), strict=True)):
            layer = torch.cat(same_depth, dim=-1)
            if self.projections:
                layer = self.projections[index % len(self.projections)](layer)
            layers.append(layer)
        return LayerStack(tuple(layers), stacks[0].lengths, stacks[0].frame_rate)
