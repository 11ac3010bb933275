"""Bring stacks of different depth and frame rate onto one grid (Shih & Harwath 2025, sec. 3.1).

The deepest stack sets the number of layers and the finest one the frames. Layers are anchored at
both ends (first with first, last with last). Frames are cells: frame j of a stack at rate r lies
at (j + 0.5) / r seconds, and a coarser stack is read off at the finer one's times:

    40 Hz   |   0   |   1   |   2   |        times before the first and after the last centre
    50 Hz   |  0  |  1  |  2  |  3  |        take the first and the last frame

Every utterance is read off its own valid frames, so padding is never mixed in, and by time, not
by the ratio of lengths, which would stretch every clip. Stacks of one nominal rate may differ by
a few frames at the end of an utterance (convolution edges): the extra ones are cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speechfuse.errors import ShapeError
from speechfuse.ops import exporting, longest
from speechfuse.types import LayerStack, StackSpec

MAX_EDGE_FRAMES = 5  # what convolution edges may cost; more means different audio


def aligned_specs(specs: Sequence[StackSpec]) -> list[StackSpec]:
    """The common grid; feature widths stay as they are."""
    layers = max(spec.num_layers for spec in specs)
    rate = max(spec.frame_rate for spec in specs)
    return [StackSpec(layers, spec.dim, rate) for spec in specs]


def check_one_width(specs: Sequence[StackSpec], merge: str) -> None:
    """Raise ShapeError if widths differ, which merge kind `merge` cannot put together."""
    widths = [spec.dim for spec in specs]
    if len(set(widths)) > 1:
        raise ShapeError(
            f"{merge} needs upstreams of one width, found {widths}; use merge kind 'concat', or "
            "'add' with width: project or width: interpolate"
        )


def align(stacks: Sequence[LayerStack]) -> list[LayerStack]:
    """The same stacks on the common grid: equal L, T, lengths and rate.

    Raises:
        ShapeError: the stacks cannot be of the same audio, they differ by more than the edges.
    """
    if len(stacks) == 1:
        return [*stacks]
    depth = max(len(stack.layers) for stack in stacks)
    rate = max(stack.frame_rate for stack in stacks)
    lengths = common_lengths(
        [stack.lengths for stack in stacks], [stack.frame_rate for stack in stacks]
    )
    frames = longest(lengths, _finest(stacks).layers[0].shape[1])  # a GPU has to be waited for
    return [
        LayerStack(spread_layers(on_grid(stack, rate, lengths, frames), depth), lengths, rate)
        for stack in stacks
    ]


def common_lengths(lengths: Sequence[Tensor], rates: Sequence[float]) -> Tensor:
    """Frames on the common grid, (B,), from the frames (B,) and the rate of each stack.

    Raises:
        ShapeError: durations differ by more than the edge frames of the coarser stack.
    """
    finest = max(rates)
    found = torch.stack([n for n, rate in zip(lengths, rates, strict=True) if rate == finest])
    common = found.amin(0)
    if exporting():
        return common
    for frames, rate in zip(lengths, rates, strict=True):
        seconds = float((frames / rate - common / finest).abs().max())
        if seconds > (MAX_EDGE_FRAMES + 0.5) / rate:
            raise ShapeError(
                f"stacks at {rate:g} and {finest:g} Hz differ by {seconds:.3f} s, more than "
                f"{MAX_EDGE_FRAMES} frames at the edges; they must be of the same audio, and their "
                "frame rates the true ones"
            )
    return common


def spread_layers(layers: Sequence[Tensor], depth: int) -> tuple[Tensor, ...]:
    """Linear interpolation over layers with both ends kept; layers that coincide are not copied."""
    if len(layers) == depth:
        return tuple(layers)
    spread = []
    for index in range(depth):
        low, high, share = neighbours(index, len(layers), depth)
        lower = layers[low]
        spread.append(lower if low == high else torch.lerp(lower, layers[high], share))
    return tuple(spread)


def neighbours(index: int, count: int, depth: int) -> tuple[int, int, float]:
    """Which of `count` layers layer `index` of `depth` lies between, and how far from the lower."""
    position = index * (count - 1) / max(1, depth - 1)
    low = math.floor(position)
    return low, math.ceil(position), position - low


def _finest(stacks: Sequence[LayerStack]) -> LayerStack:
    return max(stacks, key=lambda stack: stack.frame_rate)


def on_grid(stack: LayerStack, rate: float, lengths: Tensor, frames: int) -> list[Tensor]:
    """Layers (B, T, D) at the times of the common grid; beyond `lengths` they hold anything."""
    if stack.frame_rate == rate and exporting():  # which of two is longer is not known
        index = torch.arange(frames).clamp_max(stack.layers[0].shape[1] - 1)
        return [hidden[:, index] for hidden in stack.layers]
    if stack.frame_rate == rate:
        return [hidden[:, :frames] for hidden in stack.layers]
    device, dtype = stack.layers[0].device, stack.layers[0].dtype
    times = torch.arange(frames, dtype=torch.float64, device=device) + 0.5
    position = times * (stack.frame_rate / rate) - 0.5  # in frames of this stack
    position = torch.minimum(position.clamp_min(0)[None], (stack.lengths - 1)[:, None].double())
    low, high = position.floor().long(), position.ceil().long()
    share = (position - low)[..., None].to(dtype)
    rows = torch.arange(lengths.shape[0], device=device)[:, None]
    return [torch.lerp(hidden[rows, low], hidden[rows, high], share) for hidden in stack.layers]
