"""Memory of a training step on stored layers, against a plain reference on the same batch.

The reference stacks the layers and multiplies and sums, or permutes and calls `nn.Conv1d` as the
published code does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from speechfuse.bench.fusion import convolved
from speechfuse.contracts import Interface
from speechfuse.heads.classifier import Classifier
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.measure import peak_bytes
from speechfuse.types import Frames, LayerStack, Table, Tokens

SHAPES = ((13, 768), (25, 1024))
TASK = "bench"
UTTERANCES = 6


@dataclass(frozen=True)
class Step:
    """Bytes at most beside the batch and the parameters; gradients are counted."""

    interface: str
    layers: str
    batch: int
    ours: int
    reference: int


def step_table(seconds: float, shapes: Sequence[tuple[int, int]] = SHAPES) -> Table:
    """What `bench_step` measures, for reading. seconds: of speech in a batch."""
    rows = [
        [
            s.interface,
            s.layers,
            *(f"{size / 1e6:.0f}" for size in (s.batch, s.ours, s.reference)),
            f"{s.reference / s.ours:.1f}",
            f"{(s.batch + s.reference) / (s.batch + s.ours):.2f}",
        ]
        for s in bench_step(int(50 * seconds), shapes)
    ]
    columns = ["", "layers", "batch MB", "step MB", "reference MB", "reference / step"]
    title = f"Memory of a training step on {seconds:g} s of speech, float32"
    return title, [*columns, "with the batch"], rows


def bench_step(frames: int, shapes: Sequence[tuple[int, int]]) -> Iterator[Step]:
    """Forward and backward of an emotion classifier on every shape."""
    for layers, dim in shapes:
        torch.manual_seed(0)
        size = max(1, frames // UTTERANCES)
        hidden = torch.randn(layers, UTTERANCES, size, dim)
        stack = LayerStack(tuple(hidden), torch.full((UTTERANCES,), size), 50.0)
        for kind in (WeightedSum, HConv):
            interface = kind(stack.spec, tasks=[TASK])
            head = Classifier(interface.out_dim, num_classes=4)
            yield Step(
                "HConv" if kind is HConv else "weighted sum",
                f"{layers} x {dim}",
                hidden.nbytes,
                peak_bytes(partial(_step, interface, head, stack, plain=False)),
                peak_bytes(partial(_step, interface, head, stack, plain=True)),
            )


def _step(interface: Interface, head: Classifier, stack: LayerStack, *, plain: bool) -> None:
    for part in (interface, head):
        part.zero_grad(set_to_none=True)
    fused = plainly(stack, interface) if plain else interface(stack, TASK)
    ones = torch.ones(UTTERANCES, dtype=torch.int64)
    head.loss(fused, Tokens(ones[:, None], ones)).total.backward()


def plainly(stack: LayerStack, interface: Interface) -> Frames:
    """What an interface gives, computed from one stacked tensor."""
    stacked = stack.stacked()
    if isinstance(interface, HConv):
        hidden = convolved(stacked, interface)
    else:
        assert isinstance(interface, WeightedSum)
        hidden = (stacked * interface.logits.softmax(0)[:, None, None, None]).sum(0)
    return Frames(hidden, stack.lengths, stack.frame_rate)
