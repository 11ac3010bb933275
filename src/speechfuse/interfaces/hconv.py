"""Hierarchical convolution over the layer axis (Shih & Harwath 2024, arXiv:2406.12209)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Interface, LayerStream
from speechfuse.layer_conv import (
    layer_conv,
    stacked_conv,
    taps_of,
    windows,
)
from speechfuse.ops import add_product, product_dtype
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
    stacking, no product with padding. Weights have the layout of `nn.Conv1d`; a state of the
    published interface (transforms.0.weight, transforms.2.weight, ...) loads as it is, with
    compat="floor" where the two differ in width.
    """

    stride: int
    num_layers: int

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
        self.stride, self.num_layers, self.positions = stride, spec.num_layers, path[-1]
        self.out_dim = narrow * path[-1] if compat == "floor" else whole
        self.convs = nn.ModuleList(
            nn.Conv1d(wide, out, kernel_size, stride, kernel_size // 2)
            for wide, out in pairwise(widths)
        )
        hooks: Any = self  # torch does not type them
        hooks.register_load_state_dict_pre_hook(_rename_published)

    def blocks(self) -> list[slice]:
        """The features of each layer that remains after the last convolution."""
        return [slice(position, None, self.positions) for position in range(self.positions)]

    def forward(self, stack: LayerStack, task: str) -> Frames:
        batch, frames, dim = stack.layers[0].shape
        if stack.layers[0].is_cuda:
            stacked = torch.stack(stack.layers, dim=2).flatten(0, 1)
            for conv in self._convolutions():
                assert conv.bias is not None
                stacked = stacked_conv(stacked, conv.weight, conv.bias, self.stride)
            return Frames(self._joined(stacked.unbind(1), batch), stack.lengths, stack.frame_rate)
        layers = [layer.reshape(batch * frames, dim) for layer in stack.layers]
        for conv in self._convolutions():
            assert conv.bias is not None
            layers = layer_conv(layers, conv.weight, conv.bias, self.stride)
        return Frames(self._joined(layers, batch), stack.lengths, stack.frame_rate)

    def stream(self, task: str) -> HConvStream:
        return HConvStream(self._convolutions(), self.num_layers, self.stride, self._joined)

    def _convolutions(self) -> list[nn.Conv1d]:
        return [conv for conv in self.convs if isinstance(conv, nn.Conv1d)]

    def _joined(self, layers: Sequence[Tensor], batch: int) -> Tensor:
        """What remains, channel-major as flattened (channels, layers): index = channel * n + l."""
        flat = layers[0] if len(layers) == 1 else torch.stack(list(layers), dim=-1).flatten(1)
        return flat[:, : self.out_dim].reshape(batch, -1, self.out_dim)


def _rename_published(hconv: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """A ReLU stands after each convolution there, so that theirs have the even numbers."""
    theirs = prefix + "transforms."
    for key in [key for key in state if key.startswith(theirs)]:
        number, name = key.removeprefix(theirs).split(".", 1)
        state[f"{prefix}convs.{int(number) // 2}.{name}"] = state.pop(key)


class HConvStream(LayerStream):
    """HConv fed layer by layer: a layer goes into the sums that read it and is not kept.

    A sum that has all of its layers is the next convolution's layer at once. With layers in
    order and a kernel of 5 and stride of 3, two sums of each convolution are open at a time, in
    single precision whatever is multiplied.
    """

    def __init__(
        self,
        convs: Sequence[nn.Conv1d],
        num_layers: int,
        stride: int,
        join: Callable[[Sequence[Tensor], int], Tensor],
    ) -> None:
        self._convs, self._join, self._batch = convs, join, 0
        self._taps = [taps_of(conv.weight) for conv in convs]
        self._missing: list[list[list[tuple[int, int]]]] = []
        for conv in convs:
            self._missing.append([*map(list, windows(num_layers, conv.kernel_size[0], stride))])
            num_layers = len(self._missing[-1])
        self._open: list[dict[int, Tensor]] = [{} for _ in convs]
        self._last: dict[int, Tensor] = {}

    def add(self, index: int, hidden: Tensor) -> None:
        self._batch = len(hidden)
        self._feed(0, index, hidden.flatten(0, 1))

    def frames(self) -> Tensor:
        return self._join([self._last[index] for index in sorted(self._last)], self._batch)

    def _feed(self, level: int, index: int, hidden: Tensor) -> None:
        if level == len(self._convs):
            self._last[index] = hidden
            return
        sums, bias, dtype = self._open[level], self._convs[level].bias, product_dtype(hidden)
        assert bias is not None
        hidden = hidden.to(dtype)
        for output, window in enumerate(self._missing[level]):
            for read in [pair for pair in window if pair[1] == index]:
                tap = self._taps[level][read[0]].T.to(dtype)
                if output in sums:
                    add_product(sums[output], hidden, tap)
                else:
                    first = torch.addmm(bias.to(dtype), hidden, tap)
                    sums[output] = first.to(torch.promote_types(dtype, torch.float32))
                window.remove(read)
                if not window:
                    whole = F.relu(sums.pop(output), inplace=True)
                    self._feed(level + 1, output, whole.to(dtype))
