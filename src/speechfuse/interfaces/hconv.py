"""Hierarchical convolution over the layer axis (Shih & Harwath 2024, arXiv:2406.12209)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Interface
from speechfuse.types import Count, Frames, LayerStack, StackSpec


def layer_path(num_layers: int, kernel_size: int = 5, stride: int = 3) -> list[int]:
    """Layers left after each of the floor(log_stride(num_layers)) convolutions, at least one.

    >>> layer_path(13), layer_path(33), layer_path(2)
    ([13, 5, 2], [33, 11, 4, 2], [2, 1])
    """
    depth, power = 0, stride
    while power <= num_layers:  # integers: log(243) / log(3) is 4.999... in floating point
        depth, power = depth + 1, power * stride
    path = [num_layers]
    for _ in range(max(1, depth)):
        path.append((path[-1] + 2 * (kernel_size // 2) - kernel_size) // stride + 1)
    return path


class HConv(Interface):
    """Strided convolutions that fold neighbouring layers together until few remain.

    Features are channels, the convolution runs over layers, every frame by itself. Layers that
    remain after the last convolution lie side by side in the output.

        position o of a convolution = relu(bias + sum over taps k of
                                           W[:, :, k] @ layers[stride * o + k - kernel_size // 2])

    One sum of matrix products for each position, over the layers that exist: no permute, no
    stacking, no product with padding. Weights have the layout of `nn.Conv1d`, so those of the
    published code load.
    """

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        out_dim: int | None = None,
        kernel_size: Count = 5,
        stride: Annotated[int, Field(ge=2)] = 3,
        compat: Literal["ceil", "floor"] = "ceil",
    ) -> None:
        """out_dim: width of the output, that of the layers if left out. kernel_size, stride: in
        layers. compat: with out_dim features for n remaining layers, ceil gives each
        ceil(out_dim / n) channels and cuts the output to out_dim; floor gives floor(out_dim / n),
        as the published code does (1,023 features for 25 x 1024).
        """
        super().__init__()
        path = layer_path(spec.num_layers, kernel_size, stride)
        whole = out_dim or spec.dim
        narrow = whole // path[-1] if compat == "floor" else math.ceil(whole / path[-1])
        widths = [spec.dim] * (len(path) - 1) + [narrow]
        self.stride, self.positions = stride, path[-1]
        self.out_dim = narrow * path[-1] if compat == "floor" else whole
        self.convs = nn.ModuleList(
            nn.Conv1d(wide, out, kernel_size, stride, kernel_size // 2)
            for wide, out in pairwise(widths)
        )

    def blocks(self) -> list[slice]:
        """The features of each layer that remains after the last convolution."""
        return [slice(position, None, self.positions) for position in range(self.positions)]

    def forward(self, stack: LayerStack, task: str) -> Frames:
        batch, frames, dim = stack.layers[0].shape
        layers = [layer.reshape(batch * frames, dim) for layer in stack.layers]
        for conv in self.convs:
            layers = self._convolve(layers, conv)
        # Channel-major, as a flattened (channels, layers) tensor: index = channel * n + layer.
        flat = layers[0] if len(layers) == 1 else torch.stack(layers, dim=-1).flatten(1)
        hidden = flat[:, : self.out_dim].reshape(batch, frames, self.out_dim)
        return Frames(hidden, stack.lengths, stack.frame_rate)

    def _convolve(self, layers: Sequence[Tensor], conv: nn.Module) -> list[Tensor]:
        """One convolution with ReLU over L tensors (N, D), as products of (N, D) and (D, D')."""
        assert isinstance(conv, nn.Conv1d)
        assert conv.bias is not None
        taps = conv.weight.permute(2, 1, 0).contiguous()  # (kernel, D, D')
        half = len(taps) // 2
        positions = (len(layers) + 2 * half - len(taps)) // self.stride + 1
        outputs = []
        for position in range(positions):
            total: Tensor | None = None
            for tap in range(len(taps)):
                index = position * self.stride + tap - half
                if not 0 <= index < len(layers):
                    continue
                if total is None:
                    total = torch.addmm(conv.bias, layers[index], taps[tap])
                else:
                    total = torch.addmm(total, layers[index], taps[tap])
            assert total is not None, "a position sees at least one layer"
            outputs.append(F.relu(total, inplace=True))
        return outputs
