"""Convolution over the layer axis as matrix products: no permute, no stack, no padding.

    output o = relu(bias + sum over taps k of layers[stride * o + k - kernel // 2] @ W[:, :, k].T)

over the layers that really exist. Under gradients, products are accumulated in place, a tap's
gradient is written where it belongs, and frozen layers get none.

Layers one by one need no copy; in mixed precision those of one window are rounded at a time. Where
they lie side by side for each frame, (N, L, D), a window of them is one matrix, and so are its
taps: one product for an output in place of one for a tap. On a GPU, where a short product costs its
launch, that is worth the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechfuse.ops import add_product, product_dtype

Window = tuple[tuple[int, int], ...]  # (tap, layer) of one output


@lru_cache
def windows(num_layers: int, kernel_size: int, stride: int) -> tuple[Window, ...]:
    """What each output reads.

    >>> windows(5, 5, 3)
    (((2, 0), (3, 1), (4, 2)), ((0, 1), (1, 2), (2, 3), (3, 4)))
    """
    half = kernel_size // 2
    outputs = (num_layers + 2 * half - kernel_size) // stride + 1
    found = tuple(
        tuple(
            (k, layer)
            for k in range(kernel_size)
            if 0 <= (layer := stride * o + k - half) < num_layers
        )
        for o in range(outputs)
    )
    assert all(found), "an output sees at least one layer"
    return found


def taps_of(weight: Tensor) -> Tensor:
    """Weights of `nn.Conv1d` (D', D, kernel), each tap a matrix: (kernel, D', D)."""
    return weight.permute(2, 0, 1).contiguous()


def layer_conv(layers: Sequence[Tensor], weight: Tensor, bias: Tensor, stride: int) -> list[Tensor]:
    """Layers (N, D), weights (D', D, kernel), bias (D',): outputs (N, D')."""
    dtype = product_dtype(layers[0])
    if torch.is_grad_enabled():
        outputs = _LayerConv.apply(stride, dtype, weight, bias, *layers)  # type: ignore[no-untyped-call]
        return list(outputs)
    return _products(layers, weight, bias, stride, dtype)


def stacked_conv(stacked: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The same of layers side by side, (N, L, D), which gives outputs side by side, (N, O, D')."""
    dtype = product_dtype(stacked)
    stacked, weight, bias = stacked.to(dtype), weight.to(dtype), bias.to(dtype)
    if torch.is_grad_enabled():
        out: Tensor = _StackedConv.apply(stride, weight, bias, stacked)  # type: ignore[no-untyped-call]
        return out
    return _Windows(stacked, weight, stride).products(bias)


def _products(
    layers: Sequence[Tensor], weight: Tensor, bias: Tensor, stride: int, dtype: torch.dtype
) -> list[Tensor]:
    """Below single precision a sum in place would round after every tap, so there the layers of a
    window lie side by side, rounded if they are not yet, and one product reads them all.
    """
    reads = windows(len(layers), weight.shape[2], stride)
    bias = bias.to(dtype)
    if dtype.itemsize < 4:
        side_by_side = weight.to(dtype).permute(0, 2, 1).contiguous()  # (D', kernel, D)
        return [
            torch.addmm(
                bias,
                _rows([layers[layer] for _, layer in window], dtype),
                _within(side_by_side, window[0][0], len(window)).T,
            ).relu_()
            for window in reads
        ]
    taps = taps_of(weight)
    outputs = []
    for (tap, layer), *others in reads:
        total = torch.addmm(bias, layers[layer], taps[tap].T)
        for tap, layer in others:
            total.addmm_(layers[layer], taps[tap].T)
        outputs.append(total.relu_())
    return outputs


def _rows(layers: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Layers (N, D) side by side, (N, k * D), in a precision."""
    if layers[0].dtype == dtype:
        return torch.cat([*layers], dim=1)
    rows = layers[0].new_empty((len(layers[0]), len(layers), layers[0].shape[1]), dtype=dtype)
    for place, layer in enumerate(layers):
        rows[:, place] = layer
    return rows.flatten(1)


class _LayerConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stride: int, dtype: torch.dtype, weight: Tensor, bias: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = tuple(_products(layers, weight, bias, stride, dtype))
        ctx.stride, ctx.dtype, ctx.count = stride, dtype, len(layers)
        ctx.save_for_backward(weight, *layers, *outputs)  # layers as they are: nothing is copied
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        layers, outputs = saved[: ctx.count], saved[ctx.count :]
        _, _, for_weight, for_bias, *for_layers = ctx.needs_input_grad
        taps = taps_of(weight.to(ctx.dtype)) if any(for_layers) else None
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
                    add_product(by_tap[tap], passed.T, layers[layer].to(ctx.dtype))
                if not for_layers[layer]:
                    continue
                assert taps is not None
                sofar = by_layer[layer]
                if sofar is None:
                    by_layer[layer] = (passed @ taps[tap]).to(layers[layer].dtype)
                else:
                    add_product(sofar, passed, taps[tap])
        return (
            None,
            None,
            by_tap.permute(1, 2, 0).to(weight.dtype) if for_weight else None,
            by_bias.to(weight.dtype) if for_bias else None,
            *by_layer,
        )


class _Windows:
    """Windows of layers and of taps as matrices that lie within them, nothing is copied."""

    def __init__(self, stacked: Tensor, weight: Tensor, stride: int) -> None:
        self.stacked = stacked.contiguous()
        self.taps = weight.permute(0, 2, 1).contiguous()  # (D', kernel, D)
        self.windows = windows(stacked.shape[1], weight.shape[2], stride)

    def products(self, bias: Tensor) -> Tensor:
        """Rectified sums, (N, O, D')."""
        size = (len(self.stacked), len(self.windows), len(self.taps))
        out = self.stacked.new_empty(size)
        for index, window in enumerate(self.windows):
            rows, taps = self.rows(self.stacked, window), self.columns(self.taps, window)
            torch.addmm(bias, rows, taps.T, out=out[:, index])
        return out.relu_()

    @staticmethod
    def rows(stacked: Tensor, window: Window) -> Tensor:
        """(N, k * D)"""
        first = window[0][1]
        return _within(stacked, first, len(window))

    @staticmethod
    def columns(taps: Tensor, window: Window) -> Tensor:
        """(D', k * D)"""
        first = window[0][0]
        return _within(taps, first, len(window))


def _within(whole: Tensor, first: int, count: int) -> Tensor:
    """whole[:, first : first + count] of (N, L, D) as a matrix."""
    rows, _, dim = whole.shape
    start = whole.storage_offset() + first * dim
    return whole.as_strided((rows, count * dim), (whole.stride(0), 1), start)


class _StackedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stride: int, weight: Tensor, bias: Tensor, stacked: Tensor) -> Tensor:
        found = _Windows(stacked, weight, stride)
        output = found.products(bias)
        ctx.stride = stride
        ctx.save_for_backward(weight, found.stacked, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, stacked, output = ctx.saved_tensors
        _, for_weight, for_bias, for_layers = ctx.needs_input_grad
        found = _Windows(stacked, weight, ctx.stride)
        exact = torch.promote_types(weight.dtype, torch.float32)  # of sums over outputs
        passed = torch.ops.aten.threshold_backward(grad.contiguous(), output, 0)
        by_tap = torch.zeros_like(found.taps, dtype=exact)
        by_layer = torch.zeros_like(stacked) if for_layers else None
        for index, window in enumerate(found.windows):
            own = passed[:, index]
            if for_weight:
                add_product(found.columns(by_tap, window), own.T, found.rows(stacked, window))
            if by_layer is not None:
                found.rows(by_layer, window).addmm_(own, found.columns(found.taps, window))
        return (
            None,
            by_tap.permute(0, 2, 1).to(weight.dtype) if for_weight else None,
            passed.sum((0, 1), dtype=exact).to(weight.dtype) if for_bias else None,
            by_layer,
        )
