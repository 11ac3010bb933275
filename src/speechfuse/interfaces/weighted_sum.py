"""Softmax-weighted sum of layers (SUPERB, Yang et al. 2021, arXiv:2105.01051)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from speechfuse.contracts import Interface
from speechfuse.types import Frames, LayerStack, StackSpec


class WeightedSum(Interface):
    """One learned logit per layer; zero logits start as the plain mean.

    weights = softmax(logits)                                    (L,)
    hidden[b, t] = sum over l of weights[l] * stack.layers[l][b, t]
    """

    def __init__(self, spec: StackSpec, *, tasks: Sequence[str]) -> None:
        super().__init__()
        self.out_dim = spec.dim
        self.logits = nn.Parameter(torch.zeros(spec.num_layers))

    def layer_weights(self, stack: LayerStack, task: str) -> Tensor:
        """The same for every frame, (L,)."""
        return self.logits.softmax(0)

    def forward(self, stack: LayerStack, task: str) -> Frames:
        weights = self.logits.softmax(0).to(stack.layers[0].dtype)
        hidden: Tensor = _Mix.apply(weights, *stack.layers)  # type: ignore[no-untyped-call]
        return Frames(hidden, stack.lengths, stack.frame_rate)


class _Mix(torch.autograd.Function):
    """sum of weights[l] * layers[l], one pass over each layer and no stack, also backwards."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *layers)
        total = layers[0] * weights[0]
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            total.addcmul_(layer, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *layers = ctx.saved_tensors
        by_weight = torch.stack([torch.dot(grad.flatten(), layer.flatten()) for layer in layers])
        by_layer = [
            grad * weight if needed else None
            for weight, needed in zip(weights, ctx.needs_input_grad[1:], strict=True)
        ]
        return by_weight, *by_layer
