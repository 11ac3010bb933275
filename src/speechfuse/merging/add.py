"""Sum of aligned stacks, layer by layer (Shih & Harwath 2025, sec. 3.2, arXiv:2511.08389)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.alignment import check_one_width
from speechfuse.contracts import Merge
from speechfuse.types import LayerStack, StackSpec


class Add(Merge):
    """merged.layers[l] = sum over models of stack.layers[l]

    Models of another width are refused, or first brought to the widest one's D:

        interpolate   feature j of D reads a narrower layer's d features at (j + 0.5) * d / D - 0.5,
                      linearly between neighbours, clamped at both ends; as in the paper
        project       one Linear d -> D for each narrower model, shared by its layers; starts random

    The order of features means nothing, so interpolation mixes what does not belong together.
    """

    alike = True

    def __init__(
        self,
        specs: Sequence[StackSpec],
        *,
        width: Literal["refuse", "interpolate", "project"] = "refuse",
    ) -> None:
        """Raises ShapeError for upstreams of different width, unless `width` says what to do."""
        super().__init__()
        if width == "refuse":
            check_one_width(specs, "add")
        dim = max(spec.dim for spec in specs)
        self.spec = replace(specs[0], dim=dim)
        learned = [spec.dim < dim and width == "project" for spec in specs]
        self.sums = all(spec.dim == dim for spec in specs)
        self.projections = nn.ModuleList(
            nn.Linear(spec.dim, dim) if projected else nn.Identity()
            for spec, projected in zip(specs, learned, strict=True)
        )

    @classmethod
    def is_fixed(cls, options: Mapping[str, Any]) -> bool:
        return bool(options["width"] != "project")

    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack:
        first = stacks[0]
        if self.sums and len(stacks) == 1:
            return first
        layers = []
        for same_depth in zip(*(stack.layers for stack in stacks), strict=True):
            one, *others = (
                self._widened(layer, project)
                for layer, project in zip(same_depth, self.projections, strict=True)
            )
            layers.append(sum(others, one))
        return LayerStack(tuple(layers), first.lengths, first.frame_rate)

    def _widened(self, layer: Tensor, project: nn.Module) -> Tensor:
        """One layer (B, T, d) at the merged width, (B, T, D)."""
        projected: Tensor = project(layer)
        if projected.shape[-1] == self.spec.dim:
            return projected
        return F.interpolate(projected, size=self.spec.dim, mode="linear")  # over the last axis
