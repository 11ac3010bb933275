"""A transformer layer over the layers of each frame (Shih & Harwath 2024, arXiv:2406.12209)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from speechfuse.contracts import Interface
from speechfuse.ops import attend, fitting_heads
from speechfuse.types import Count, Frames, LayerStack, Share, StackSpec


class ClsPooling(Interface):
    """The layers of a frame are tokens; what a learned CLS token becomes among them is the frame.

        tokens[b, t] = [cls, stack.layers[0][b, t], ..., stack.layers[L - 1][b, t]]
        hidden[b, t] = nn.TransformerEncoderLayer(tokens[b, t])[0]

    Post-norm, ReLU; only the output at CLS is computed, so the feed-forward runs once for a frame
    and not for each layer. Starts as torch's layer does, with a small random CLS. The paper's
    parameter count fixes feed_forward; heads, dropout and no positions are our choice. CLS reads
    itself too, so there are no weights over layers that sum to one.
    """

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        heads: Count = 8,
        feed_forward: Count = 2048,
        dropout: Share = 0.1,
        layer_embedding: bool = False,
    ) -> None:
        """heads: at most, fewer where they do not divide the width. feed_forward: its width.
        layer_embedding: add a learned vector to each layer, which tells its depth.
        """
        super().__init__()
        self.out_dim = spec.dim
        self.cls = nn.Parameter(0.02 * torch.randn(spec.dim))
        self.block = nn.TransformerEncoderLayer(
            spec.dim, fitting_heads(spec.dim, heads), feed_forward, dropout, batch_first=True
        )
        self.layer_embedding = (
            nn.Parameter(0.02 * torch.randn(spec.num_layers, spec.dim)) if layer_embedding else None
        )

    def forward(self, stack: LayerStack, task: str) -> Frames:
        layers, block = list(stack.layers), self.block
        if self.layer_embedding is not None:
            layers = [h + vector for h, vector in zip(layers, self.layer_embedding, strict=True)]
        tokens = torch.stack([self.cls.expand_as(layers[0]), *layers], dim=2)
        read, _ = attend(block.self_attn, self.cls[None], tokens)
        hidden = block.norm1(self.cls + block.dropout1(read[:, :, 0]))
        wide = block.dropout(F.relu(block.linear1(hidden)))
        hidden = block.norm2(hidden + block.dropout2(block.linear2(wide)))
        return Frames(hidden, stack.lengths, stack.frame_rate)
