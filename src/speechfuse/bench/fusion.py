"""Fusion against a straightforward reference and against the machine's own ceiling, in one run.

* HConv: the reference stacks the layers, permutes and calls `nn.Conv1d`. The ceiling is the time of
  the matrix products alone, of the same shapes and number, one after another.
* Weighted sum: the reference stacks the layers, multiplies and sums. The ceiling is the time of
  reading every layer once, once more for the gradient, as one tensor.

Layers lie in memory as a store gives them and are frozen: no method makes a gradient for them.
"mixed" is how a run trains with bf16-mixed: layers and weights in float32 under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.fusion import MergeFirst
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.layer_conv import windows
from speechfuse.measure import Device, devices, median_seconds, peak_bytes, setting
from speechfuse.merging.add import Add
from speechfuse.types import Frames, LayerStack, StackSpec, Table

SHAPES = ((1, 13, 768), (1, 25, 1024), (2, 13, 768))  # models, layers, width
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed": torch.float32}
TASK = "bench"


@dataclass(frozen=True)
class Timing:
    """One method on one shape; seconds are medians."""

    device: str
    interface: str
    shape: str
    dtype: str
    backward: bool
    ours: float
    reference: float
    ceiling: float
    work: float  # of the ceiling: operations of products, or bytes that are read
    memory: int  # bytes beside the layers
    reference_memory: int
    streamed: int | None  # bytes, layers coming one by one; only forward


def bench_table(frames: int, repeats: int, device: Device = "all") -> Table:
    """What `bench_fusion` measures, for reading."""
    title = f"{frames} frames, {setting(repeats)}"
    columns = ["", "layers", "type", "pass", "ms", "reference / ours", "of the ceiling", "ceiling"]
    rows = [
        [
            f"{t.interface}" + f" on {t.device}" * (t.device != "cpu"),
            t.shape,
            t.dtype,
            "and backward" if t.backward else "forward",
            f"{1000 * t.ours:.1f}",
            f"{t.reference / t.ours:.2f}",
            f"{100 * t.ceiling / t.ours:.0f} %",
            f"{t.work / t.ceiling / 1e9:.1f} {'GFLOP/s' if t.interface == 'HConv' else 'GB/s'}",
            f"{t.memory / 1e6:.1f}",
            f"{t.reference_memory / 1e6:.1f}",
            "" if t.streamed is None else f"{t.streamed / 1e6:.1f}",
        ]
        for t in bench_fusion(frames, repeats, device=device)
    ]
    return title, [*columns, "MB", "reference MB", "streamed MB"], rows


def bench_fusion(
    frames: int,
    repeats: int,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    device: Device = "all",
) -> Iterator[Timing]:
    """Every shape, interface, precision, forward and with backward, on the devices asked for.

    float32 is that of products everywhere: cuDNN would round the reference's to TF32.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for name in devices(device):
            for models, layers, dim in shapes:
                for dtype in DTYPES:
                    case = _Case(name, models, layers, dim, dtype, frames)
                    for kind in (HConv, WeightedSum):
                        for backward in (False, True):
                            yield case.timing(kind, backward, repeats)


class _Case:
    def __init__(
        self, device: str, models: int, layers: int, dim: int, dtype: str, frames: int
    ) -> None:
        self.device, self.dtype, self.models = device, dtype, models
        self.spec = StackSpec(layers, dim, 50.0)
        torch.manual_seed(0)
        lengths = torch.tensor([frames], device=device)
        size = (models, layers, 1, frames, dim)
        self.hidden = torch.randn(size, device=device, dtype=DTYPES[dtype])
        self.stacks = [LayerStack(tuple(stacked), lengths, 50.0) for stacked in self.hidden]

    def timing(self, kind: type[HConv] | type[WeightedSum], backward: bool, repeats: int) -> Timing:
        interface = kind(self.spec, tasks=[TASK]).to(self.device, DTYPES[self.dtype])
        fusion = MergeFirst(Add([self.spec] * self.models), interface)
        merged = self.models > 1

        def ours() -> Tensor:
            fused: Frames = fusion(self.stacks, TASK)
            return fused.hidden

        def reference() -> Tensor:
            stacked = torch.stack(self.stacks[0].layers)
            for stack in self.stacks[1:]:
                stacked = stacked + torch.stack(stack.layers)
            if isinstance(interface, WeightedSum):
                return (stacked * interface.logits.softmax(0)[:, None, None, None]).sum(0)
            return convolved(stacked, interface)

        def run(call: Callable[[], Tensor]) -> Tensor:
            if not backward:
                with torch.no_grad(), self._precision():
                    return call()
            fusion.zero_grad(set_to_none=True)
            with self._precision():
                loss = call().sum()
            loss.backward()
            return loss

        ceiling: _Products | _Reading
        if isinstance(interface, HConv):
            layer = self.hidden[0, 0].bfloat16() if self.dtype == "mixed" else self.hidden[0, 0]
            ceiling = _Products(interface, self.spec, layer, backward)
        else:
            ceiling = _Reading(self.hidden, 2 if backward else 1)
        seconds = median_seconds(
            {"ours": lambda: run(ours), "reference": lambda: run(reference), "ceiling": ceiling},
            repeats,
        )
        return Timing(
            device=self.device,
            interface="HConv" if isinstance(interface, HConv) else "weighted sum",
            shape=f"{self.models} x " * merged + f"{self.spec.num_layers} x {self.spec.dim}",
            dtype=self.dtype,
            backward=backward,
            **seconds,
            work=ceiling.work,
            memory=peak_bytes(lambda: run(ours)),
            reference_memory=peak_bytes(lambda: run(reference)),
            streamed=None
            if backward or self.dtype == "mixed"
            else peak_bytes(lambda: self._streamed(fusion)),
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "mixed")

    def _streamed(self, fusion: MergeFirst) -> Tensor:
        lengths = [stack.lengths for stack in self.stacks]
        stream = fusion.stream(TASK, [self.spec] * self.models, lengths)
        for index in range(self.spec.num_layers):
            for model, stack in enumerate(self.stacks):
                stream.accumulate(index, stack.layers[index], model)
        return stream.result().hidden


def convolved(stacked: Tensor, hconv: HConv) -> Tensor:
    """What the published code does: (L, B, T, D) to (B * T, D, L), then convolutions."""
    _, batch, frames, dim = stacked.shape
    hidden = stacked.permute(1, 2, 3, 0).reshape(batch * frames, dim, -1)
    for conv in hconv.convs:
        hidden = F.relu(conv(hidden))
    return hidden.flatten(1)[:, : hconv.out_dim].reshape(batch, frames, -1)


class _Products:
    """The matrix products of HConv and nothing else, into memory that is there: one for each tap,
    or one for each output on a GPU, where layers lie side by side.
    """

    def __init__(self, hconv: HConv, spec: StackSpec, layer: Tensor, backward: bool) -> None:
        self._calls: list[tuple[Tensor, Tensor, Tensor]] = []
        rows, layers = layer.flatten(0, 1), spec.num_layers
        for level, conv in enumerate(hconv.convs):
            assert isinstance(conv, nn.Conv1d)
            wide, narrow = conv.in_channels, conv.out_channels
            reads = windows(layers, conv.kernel_size[0], hconv.stride)
            layers = len(reads)
            sizes = [len(r) for r in reads] if layer.is_cuda else [1] * sum(map(len, reads))
            y = rows.new_ones(len(rows), narrow)
            for size in sizes:
                x, weight = rows.new_ones(len(rows), size * wide), y.new_ones(size * wide, narrow)
                self._calls.append((x, weight, torch.empty_like(y)))
                if backward:
                    self._calls.append((y.T, x, torch.empty_like(weight).T.contiguous()))
                if backward and level:  # the first convolution reads frozen layers
                    self._calls.append((y, weight.T, torch.empty_like(x)))
        self.work = sum(2.0 * len(x) * weight.numel() for x, weight, _ in self._calls)

    def __call__(self) -> None:
        for left, right, out in self._calls:
            torch.mm(left, right, out=out)


class _Reading:
    """All layers read as often as said, as one tensor: on a GPU a launch for each would take longer
    than what they are read in. Of two bfloat16 numbers as one, which is as many bytes.
    """

    def __init__(self, hidden: Tensor, times: int) -> None:
        self._hidden, self._times = hidden.flatten().view(torch.float32), times
        self.work = float(hidden.nbytes * times)

    def __call__(self) -> None:
        for _ in range(self._times):
            self._hidden.sum()
