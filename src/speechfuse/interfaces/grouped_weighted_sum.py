"""A weighted sum in each group of layers (Shih & Harwath 2024, sec. 3, arXiv:2406.12209)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.contracts import Interface
from speechfuse.layer_linear import layer_linear
from speechfuse.ops import mix
from speechfuse.types import Count, Frames, LayerStack, StackSpec


class GroupedWeightedSum(Interface):
    """Neighbouring layers share a softmax; the sums of all groups are projected together.

        sum_g[b, t] = sum over l in group g of softmax(logits of g)[l] * stack.layers[l][b, t]
        hidden = W [sum_1, ..., sum_K] + bias

    Zero logits start as the plain mean of each group. The paper says "subset of layers" only; ours
    are consecutive, in order, and differ by one layer at most; a layer alone in its group is taken
    as it is. There are no layer weights to show: the projection decides how much a group counts.
    """

    linear = True

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        out_dim: int | None = None,
        groups: Count = 2,
    ) -> None:
        """out_dim: width of the output, that of the layers if left out. groups: fewer, with a
        warning, where every layer would be alone in its group: that is concat_project.
        """
        super().__init__()
        most = max(1, spec.num_layers - 1)
        if groups > most:
            logging.getLogger(__name__).warning(
                "grouped_weighted_sum: groups reduced from %d to %d, the stack has %d layers",
                groups,
                most,
                spec.num_layers,
            )
            groups = most
        self.out_dim = out_dim or spec.dim
        self.sizes = group_sizes(spec.num_layers, groups)
        self.logits = nn.Parameter(torch.zeros(spec.num_layers))
        self.project = nn.Linear(groups * spec.dim, self.out_dim)

    def learned_weights(self) -> dict[str, Tensor]:
        """Those inside each group that has several layers."""
        groups = enumerate(self.logits.split(self.sizes), start=1)
        return {f"group {i}": logits.softmax(0) for i, logits in groups if len(logits) > 1}

    def forward(self, stack: LayerStack, task: str) -> Frames:
        sums: list[Tensor] = []
        start = 0
        for logits in self.logits.split(self.sizes):
            sums.append(mix(logits.softmax(0), stack.layers[start : start + len(logits)]))
            start += len(logits)
        return Frames(layer_linear(sums, self.project), stack.lengths, stack.frame_rate)


def group_sizes(num_layers: int, groups: int) -> list[int]:
    """Layers of each group, the larger ones first.

    >>> group_sizes(13, 2), group_sizes(5, 4)
    ([7, 6], [2, 1, 1, 1])
    """
    size, larger = divmod(num_layers, groups)
    return [size + (group < larger) for group in range(groups)]
