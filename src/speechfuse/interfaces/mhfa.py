"""Multi-head factorized attentive pooling (Peng et al. 2022, SLT, arXiv:2210.01273)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.contracts import Interface
from speechfuse.ops import length_mask, mix
from speechfuse.types import Count, Frames, LayerStack, StackSpec


class MHFA(Interface):
    """One vector for each utterance: some layers say where to look, others what is read there.

        keys[b, t]   = K (sum over l of softmax(logits[0])[l] * stack.layers[l][b, t])
        values[b, t] = V (sum over l of softmax(logits[1])[l] * stack.layers[l][b, t]) + bias
        weights[b, :, h] = softmax over the valid frames of A[h] . keys[b, t]
        hidden[b, 0] = W [sum over t of weights[b, t, h] * values[b, t] for every head h] + bias

    Zero logits start as the plain mean of layers. The paper's code has biases in K and A too: they
    add the same to every frame, which the softmax over time takes away, so they are left out.
    """

    pools = True

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        heads: Count = 8,
        compression: Count = 128,
        embedding_dim: Count = 256,
    ) -> None:
        """compression: width of keys and values. embedding_dim: width of the output."""
        super().__init__()
        self.out_dim = embedding_dim
        self.logits = nn.Parameter(torch.zeros(2, spec.num_layers))  # of keys, of values
        self.keys = nn.Linear(spec.dim, compression, bias=False)
        self.values = nn.Linear(spec.dim, compression)
        self.heads = nn.Linear(compression, heads, bias=False)
        self.project = nn.Linear(heads * compression, self.out_dim)

    def learned_weights(self) -> dict[str, Tensor]:
        keys, values = self.logits.softmax(1)
        return {"keys": keys, "values": values}

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """The values are what is read, the keys only choose frames; each (L,)."""
        return self.learned_weights()

    def forward(self, stack: LayerStack, task: str) -> Frames:
        to_keys, to_values = self.logits.softmax(1)
        scores = self.heads(self.keys(mix(to_keys, stack.layers)))  # (B, T, H)
        padding = ~length_mask(stack.lengths, scores.shape[1])
        weights = scores.masked_fill(padding[..., None], -torch.inf).softmax(1)
        values = self.values(mix(to_values, stack.layers))
        read = weights.transpose(1, 2) @ values  # (B, H, compression)
        hidden = self.project(read.flatten(1))[:, None]
        return Frames(hidden, torch.ones_like(stack.lengths), stack.frame_rate)
