"""Learned queries attend to the layers of each frame (Ciernik et al. 2026, arXiv:2601.09322)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.contracts import Interface
from speechfuse.ops import attend, fitting_heads
from speechfuse.types import Count, Frames, LayerStack, Share, StackSpec


class LayerCrossAttention(Interface):
    """Multi-head attention with queries of its own; the layers of a frame are keys and values.

        read[b, t] = nn.MultiheadAttention(queries, layers of frame t, layers of frame t)   (Q, D)
        hidden[b, t] = read[b, t, 0], or for several queries W [read[b, t, 0], ...] + bias

    The queries are small at the start, so that every layer counts about the same. The paper reads
    summary tokens of a vision transformer's layers, one result for an image; here every frame has
    its own. Number of queries and heads are our choice.
    """

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        queries: Count = 1,
        heads: Count = 8,
        dropout: Share = 0.0,
    ) -> None:
        """heads: at most, fewer where they do not divide the width. dropout: of layer weights."""
        super().__init__()
        self.out_dim = spec.dim
        self.queries = nn.Parameter(0.02 * torch.randn(queries, spec.dim))
        self.attention = nn.MultiheadAttention(
            spec.dim, fitting_heads(spec.dim, heads), dropout, batch_first=True
        )
        self.project = nn.Linear(queries * spec.dim, spec.dim) if queries > 1 else nn.Identity()

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """Those of every frame, the mean over queries and heads, (L, B, T)."""
        _, weights = attend(self.attention, self.queries, torch.stack(stack.layers, dim=2))
        return {"": weights.mean(-1).movedim(-1, 0)}

    def forward(self, stack: LayerStack, task: str) -> Frames:
        read, _ = attend(self.attention, self.queries, torch.stack(stack.layers, dim=2))
        return Frames(self.project(read.flatten(2)), stack.lengths, stack.frame_rate)
