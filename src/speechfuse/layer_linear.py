"""A linear layer over layers side by side as a sum of products: they are never put together.

In mixed precision one layer at a time is rounded, and again when its gradient is asked for: a copy
of every layer would be kept for that otherwise. Sums are of single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from speechfuse.ops import add_product, exporting, product_dtype


def layer_linear(layers: Sequence[Tensor], linear: nn.Linear) -> Tensor:
    """linear(torch.cat(layers, -1)) without the copy: L x (B, T, D), D may differ."""
    rows = [layer.flatten(0, -2) for layer in layers]
    dtype = product_dtype(layers[0])
    if exporting():
        total = _products(rows, linear.weight, linear.bias, dtype)
    else:
        total = _Joined.apply(dtype, linear.weight, linear.bias, *rows)  # type: ignore[no-untyped-call]
    return total.reshape(*layers[0].shape[:-1], -1)


def _products(rows: Sequence[Tensor], weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    taps = weight.to(dtype).T.split([row.shape[1] for row in rows])
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.addmm(bias.to(dtype), rows[0].to(dtype), taps[0]).to(exact)
    for row, tap in zip(rows[1:], taps[1:], strict=True):
        add_product(total, row.to(dtype), tap)
    return total.to(dtype)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, weight: Tensor, bias: Tensor, *rows: Tensor
    ) -> Tensor:
        ctx.dtype = dtype
        ctx.save_for_backward(weight, *rows)  # as they are: nothing is copied
        return _products(rows, weight, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *rows = ctx.saved_tensors
        _, for_weight, for_bias, *for_rows = ctx.needs_input_grad
        widths = [row.shape[1] for row in rows]
        grad = grad.contiguous()
        by_weight = torch.empty_like(weight) if for_weight else None
        if by_weight is not None:
            for own, row in zip(by_weight.split(widths, dim=1), rows, strict=True):
                own.copy_(grad.T @ row.to(ctx.dtype))
        taps = weight.to(ctx.dtype).split(widths, dim=1)
        by_rows = [
            (grad @ tap).to(row.dtype) if needed else None
            for tap, row, needed in zip(taps, rows, for_rows, strict=True)
        ]
        exact = torch.promote_types(weight.dtype, torch.float32)
        by_bias = grad.sum(0, dtype=exact).to(weight.dtype) if for_bias else None
        return None, by_weight, by_bias, *by_rows
