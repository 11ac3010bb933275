"""Softmax-weighted sum of layers (SUPERB, Yang et al. 2021, arXiv:2105.01051)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.contracts import Interface, LayerStream
from speechfuse.ops import mix
from speechfuse.types import Frames, LayerStack, StackSpec


class WeightedSum(Interface):
    """One learned logit per layer.

        weights = softmax(logits)                                    (L,)
        hidden[b, t] = sum over l of weights[l] * stack.layers[l][b, t]

    Zero logits start as the plain mean.
    """

    linear = True

    def __init__(self, spec: StackSpec, *, tasks: Sequence[str]) -> None:
        super().__init__()
        self.out_dim = spec.dim
        self.logits = nn.Parameter(torch.zeros(spec.num_layers))

    def learned_weights(self) -> dict[str, Tensor]:
        return {"": self.logits.softmax(0)}

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """The same for every frame, (L,)."""
        return self.learned_weights()

    def mixture(self, task: str) -> Tensor:
        return self.logits.softmax(0)

    def forward(self, stack: LayerStack, task: str) -> Frames:
        return Frames(mix(self.mixture(task), stack.layers), stack.lengths, stack.frame_rate)

    def stream(self, task: str) -> LayerStream:
        return WeightedSumStream(self.logits.detach().softmax(0))


class WeightedSumStream(LayerStream):
    """Adds up layers with weights (L,) that are known before."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._total: Tensor | None = None

    def add(self, index: int, hidden: Tensor) -> None:
        weight = self._weights[index].to(hidden.dtype)
        if self._total is None:
            self._total = hidden * weight
        else:
            self._total.addcmul_(hidden, weight)

    def frames(self) -> Tensor:
        assert self._total is not None
        return self._total
