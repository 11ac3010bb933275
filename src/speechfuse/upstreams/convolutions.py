"""The convolutions over samples of a frozen encoder, as matrix products over channels-last frames.

    samples ─ 10 samples a frame ─ x W0 ─ GELU ─ x W1 ─ GELU ─ ... ─ frames (T, C)
                                   a group norm is folded into W0

* A frame of a convolution with stride 2 is a product of two or three neighbouring frames, which lie
  next to each other: nothing is transposed or laid out in blocks.
* A group norm with one channel a group follows a convolution without a gain of its own: mean and
  variance of its output follow from those of the samples' windows, 10 numbers and 10 x 10. So the
  norm is an affine map of W0, and its three passes over the largest tensor of all are none.
* The first two are done in pieces of time that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.ops import length_mask
from speechfuse.upstreams.products import product

PIECE = 2048  # frames of the first convolution at a time on a CPU


def lay_out(conv: nn.Conv1d, dtype: torch.dtype) -> None:
    """Weights (C', C, K) so that a frame's products read them in order, K before C."""
    weight = conv.weight
    weight.data = weight.data.to(dtype).permute(0, 2, 1).contiguous().permute(0, 2, 1)


def convolve(layers: Sequence[Any], samples: Tensor, lengths: Tensor) -> Tensor:
    """(B, S) float32 -> (B, T, C), in the type of the upper layers' weights.

    layers: of transformers, each a `conv`, maybe a `layer_norm` and an `activation`.
    """
    first, second, *rest = layers
    kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
    windows = samples.unfold(1, kernel, stride)  # (B, T, K)
    norm = getattr(first, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm):
        valid = (lengths - kernel).div(stride, rounding_mode="floor") + 1
        weight, bias = _folded(first.conv, norm, windows, valid)
    else:
        count = len(samples)
        weight = first.conv.weight[:, 0].t().expand(count, -1, -1)
        bias = _bias(first.conv).expand(count, 1, -1)
    dtype = second.conv.weight.dtype
    size = (windows.shape[1] - second.conv.kernel_size[0]) // second.conv.stride[0] + 1
    piece = size if samples.is_cuda else PIECE // second.conv.stride[0]
    made = []
    for start in range(0, size, piece):
        begin = start * second.conv.stride[0]
        end = (min(start + piece, size) - 1) * second.conv.stride[0] + second.conv.kernel_size[0]
        hidden = torch.baddbmm(bias, windows[:, begin:end], weight)
        if isinstance(norm, nn.LayerNorm):
            hidden = norm(hidden)
        hidden = activate(first.activation, hidden).to(dtype)
        made.append(_next(second, hidden))
    hidden = made[0] if len(made) == 1 else torch.cat(made, dim=1)
    for layer in rest:
        hidden = _next(layer, hidden)
    return hidden


def activate(activation: nn.Module, hidden: Tensor) -> Tensor:
    """In place where it is the GELU that all published models have."""
    from transformers.activations import GELUActivation

    if isinstance(activation, GELUActivation) and activation.act is F.gelu:
        torch.ops.aten.gelu_(hidden)
        return hidden
    activated: Tensor = activation(hidden)
    return activated


def _folded(
    conv: nn.Conv1d, norm: nn.GroupNorm, windows: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight (B, K, C) and bias (B, 1, C) of a convolution and the norm of its valid outputs.

    With weights w, mean m and covariance V of the windows, an output has mean w m and variance
    w V w. In double precision: a difference of large sums.
    """
    mask = length_mask(lengths, windows.shape[1])[..., None]
    seen = (windows * mask).double()
    count = lengths[:, None, None]
    mean = seen.sum(1, keepdim=True) / count  # (B, 1, K)
    covariance = seen.transpose(1, 2) @ seen / count - mean.transpose(1, 2) @ mean
    weight = conv.weight[:, 0].double()  # (C, K)
    variance = ((weight @ covariance) * weight).sum(-1).clamp_min(0)  # (B, C)
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    scaled = (scale[..., None] * weight).transpose(1, 2)  # (B, K, C)
    bias = norm.bias.double() - mean @ scaled
    return scaled.float(), bias.float()


def _bias(conv: nn.Conv1d) -> Tensor:
    weight = conv.weight
    return weight.new_zeros(weight.shape[0]) if conv.bias is None else conv.bias


def _next(layer: Any, hidden: Tensor) -> Tensor:
    """One convolution, norm and activation: (B, T, C) -> (B, T', C)."""
    hidden = _product(layer.conv, hidden)
    norm = getattr(layer, "layer_norm", None)
    if norm is not None:
        hidden = norm(hidden.float())
    return activate(layer.activation, hidden).to(layer.conv.weight.dtype)


def _product(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """A convolution without padding as one product."""
    (kernel,), (stride,), (batch, _, channels) = conv.kernel_size, conv.stride, hidden.shape
    size = (hidden.shape[1] - kernel) // stride + 1
    weight = conv.weight.permute(0, 2, 1).reshape(len(conv.weight), -1)  # (C', K C)
    steps = (hidden.stride(0), stride * channels, 1)
    windows = hidden.as_strided((batch, size, kernel * channels), steps, hidden.storage_offset())
    rows = windows.reshape(batch * size, -1)
    return product(rows, weight, conv.bias).view(batch, size, -1)


def grouped(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """The positional convolution with as many frames out as in: (B, T, D) -> (B, T, D).

    An utterance alone on a CPU: one product for each group, over windows that are copied, as a
    kernel of 128 is three times as slow in bfloat16 otherwise.
    """
    weight = conv.weight
    hidden = hidden.to(weight.dtype)
    (kernel,), size, margin = conv.kernel_size, hidden.shape[1], int(conv.padding[0])
    if hidden.is_cuda or len(hidden) > 1:
        made = F.conv1d(hidden.transpose(1, 2), weight, padding=margin, groups=conv.groups)
        frames = made[..., :size].transpose(1, 2)
        return frames if conv.bias is None else frames + conv.bias
    width = weight.shape[1]
    by_group = F.pad(hidden[0].unflatten(1, (-1, width)).transpose(0, 1), (0, 0, margin, margin))
    by_group = by_group.contiguous()
    out = []
    for rows, part in zip(by_group, weight.chunk(conv.groups), strict=True):
        windows = rows.as_strided((size, kernel * width), (width, 1), rows.storage_offset())
        out.append(product(windows, part.permute(0, 2, 1).reshape(len(part), -1), None))
    joined = torch.cat(out, dim=1)
    return (joined if conv.bias is None else joined + conv.bias)[None]
