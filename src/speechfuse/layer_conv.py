"""Convolution over the layer axis as matrix products: no permute, no stack, no padding.

    output o = relu(bias + sum over taps k of layers[stride * o + k - kernel // 2] @ W[:, :, k].T)

over the layers that really exist. Under gradients, products are accumulated in place, a tap's
gradient is written where it belongs, and frozen layers get none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Window = list[tuple[int, int]]  # (tap, layer) of one output


def windows(num_layers: int, kernel_size: int, stride: int) -> list[Window]:
    """What each output reads.

    >>> windows(5, 5, 3)
    [[(2, 0), (3, 1), (4, 2)], [(0, 1), (1, 2), (2, 3), (3, 4)]]
    """
    half = kernel_size // 2
    outputs = (num_layers + 2 * half - kernel_size) // stride + 1
    found = [
        [
            (k, layer)
            for k in range(kernel_size)
            if 0 <= (layer := stride * o + k - half) < num_layers
        ]
        for o in range(outputs)
    ]
    assert all(found), "an output sees at least one layer"
    return found


def taps_of(weight: Tensor) -> Tensor:
    """Weights of `nn.Conv1d` (D', D, kernel), each tap a matrix: (kernel, D', D)."""
    return weight.permute(2, 0, 1).contiguous()


def layer_conv(layers: Sequence[Tensor], weight: Tensor, bias: Tensor, stride: int) -> list[Tensor]:
    """Layers (N, D), weights (D', D, kernel), bias (D',): outputs (N, D')."""
    device = layers[0].device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        layers = [layer.to(low) for layer in layers]
        weight, bias = weight.to(low), bias.to(low)
    if torch.is_grad_enabled():
        return list(_LayerConv.apply(stride, weight, bias, *layers))  # type: ignore[no-untyped-call]
    return _products(layers, taps_of(weight), bias, stride)


def _products(layers: Sequence[Tensor], taps: Tensor, bias: Tensor, stride: int) -> list[Tensor]:
    """Below single precision a sum in place would round after every tap, so there the layers of a
    window lie side by side and one product reads them all.
    """
    outputs = []
    for window in windows(len(layers), len(taps), stride):
        (tap, layer), *others = window
        if bias.itemsize < 4:
            rows = torch.cat([layers[layer] for _, layer in window], dim=1)
            total = torch.addmm(bias, rows, torch.cat([taps[tap] for tap, _ in window], dim=1).T)
        else:
            total = torch.addmm(bias, layers[layer], taps[tap].T)
            for tap, layer in others:
                total.addmm_(layers[layer], taps[tap].T)
        outputs.append(F.relu(total, inplace=True))
    return outputs


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, in the precision of `total`."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


class _LayerConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stride: int, weight: Tensor, bias: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = tuple(_products(layers, taps_of(weight), bias, stride))
        ctx.stride, ctx.count = stride, len(layers)
        ctx.save_for_backward(weight, *layers, *outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        layers, outputs = saved[: ctx.count], saved[ctx.count :]
        _, for_weight, for_bias, *for_layers = ctx.needs_input_grad
        taps = taps_of(weight) if any(for_layers) else None
        exact = torch.promote_types(weight.dtype, torch.float32)  # of sums over outputs
        by_tap = weight.new_zeros((weight.shape[2], *weight.shape[:2]), dtype=exact)
        by_layer: list[Tensor | None] = [None] * ctx.count
        by_bias = weight.new_zeros(len(weight), dtype=exact)
        for grad, output, window in zip(
            grads, outputs, windows(ctx.count, weight.shape[2], ctx.stride), strict=True
        ):
            passed = torch.ops.aten.threshold_backward(grad.contiguous(), output, 0)
            by_bias += passed.sum(0, dtype=exact)
            for tap, layer in window:
                if for_weight:
                    _add_product(by_tap[tap], passed.T, layers[layer])
                if not for_layers[layer]:
                    continue
                assert taps is not None
                sofar = by_layer[layer]
                if sofar is None:
                    by_layer[layer] = passed @ taps[tap]
                else:
                    _add_product(sofar, passed, taps[tap])
        return (
            None,
            by_tap.permute(1, 2, 0).to(weight.dtype) if for_weight else None,
            by_bias.to(weight.dtype) if for_bias else None,
            *by_layer,
        )
