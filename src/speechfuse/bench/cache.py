"""The cache against the disk and against memory, in one run, and two ways to lay out layers.

* Writing: shards with their checksums, against the same bytes written plainly to a file beside
  them. Neither waits for the disk: the system has the bytes when a file is closed.
* Reading what was read before: against a copy of the same values from memory into memory that is
  there, with the same change of type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from speechfuse.bench.speech import fill_at_random, named_utterances
from speechfuse.cache.shards import DTYPES, open_shard, shard_layers, stored, write_shard
from speechfuse.cache.store import Store
from speechfuse.data.batching import by_duration
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.layer_conv import windows
from speechfuse.measure import Call, Clock, median_ratio, seconds_in_turns
from speechfuse.types import LayerStack, StackSpec, Table

SHAPES = ((13, 768), (25, 1024))
BATCH_SECONDS = 60.0
TASK = "bench"


@dataclass(frozen=True)
class Rate:
    """One way to write or read; seconds are medians, the share is that within a turn."""

    what: str
    layers: str
    dtype: str
    size: int  # bytes as they are stored
    seconds: float
    ceiling: float
    share: float  # of the ceiling's rate


@dataclass(frozen=True)
class Layout:
    """Seconds of something with layers apart, (L, T, D), and side by side in a frame, (T, L, D)."""

    what: str
    layers: str
    apart: float
    together: float
    ratio: float  # together / apart, within a turn


def cache_tables(
    seconds: float, repeats: int, folder: Path | None = None, clock: Clock = perf_counter
) -> Iterator[Table]:
    """What `bench_cache` and `bench_layouts` measure, for reading. folder: on the disk meant."""
    setting = f"{seconds:g} s of speech, 1 to 15 s each, medians of {repeats}"
    setting += ", processor time" * (clock is process_time)
    rows = [
        [
            r.what,
            r.layers,
            r.dtype,
            f"{r.size / 1e6:.0f}",
            f"{r.size / r.seconds / 1e9:.2f}",
            f"{r.size / r.ceiling / 1e9:.2f}",
            f"{100 * r.share:.0f} %",
        ]
        for r in bench_cache(seconds, repeats, SHAPES, folder, clock)
    ]
    columns = ["", "layers", "type", "MB", "GB / s", "ceiling GB / s", "of the ceiling"]
    yield f"Cache: {setting}", columns, rows
    rows = [
        [
            r.what,
            r.layers,
            f"{1000 * r.apart:.1f}",
            f"{1000 * r.together:.1f}",
            f"{r.ratio:.2f}",
        ]
        for r in bench_layouts(seconds, repeats, SHAPES, folder, clock)
    ]
    columns = ["", "layers", "(L, T, D) ms", "(T, L, D) ms", "time / time of (L, T, D)"]
    yield f"Layout, float16 in the file: {setting}", columns, rows


def bench_cache(
    seconds: float,
    repeats: int,
    shapes: Sequence[tuple[int, int]],
    folder: Path | None = None,
    clock: Clock = perf_counter,
) -> Iterator[Rate]:
    """Every shape and type: a shard written, and read in every manner."""
    for layers, dim in shapes:
        for dtype in DTYPES:
            with TemporaryDirectory(dir=folder) as place:
                case = _Case(Path(place), layers, dim, dtype, seconds, clock)
                yield case.writing(repeats)
                yield from case.reading(repeats)


class _Case:
    """A filled store, and the same layers in memory as they are stored."""

    def __init__(
        self,
        folder: Path,
        layers: int,
        dim: int,
        dtype: str,
        seconds: float,
        clock: Clock = perf_counter,
    ) -> None:
        torch.manual_seed(0)
        self.folder, self.dtype, self.clock = folder, dtype, clock
        self.shape = f"{layers} x {dim}"
        self.utterances = named_utterances(folder, seconds)
        self.store = Store(folder / "stores", {}, StackSpec(layers, dim, 50.0), dtype)
        fill_at_random(self.store, self.utterances)
        self.kept: dict[str, Tensor] = {}
        for path in self.store.shards_of(self.store.keys(self.utterances)):
            handle = open_shard(path)
            names = handle.keys()
            self.kept |= {name: handle.get_tensor(name).clone() for name in names}

    def _rate(self, what: str, size: int, calls: dict[str, Call], repeats: int) -> Rate:
        taken = seconds_in_turns(calls, repeats, clock=self.clock)
        ours, ceiling = (sorted(taken[name])[repeats // 2] for name in ("ours", "ceiling"))
        share = median_ratio(taken["ceiling"], taken["ours"])
        return Rate(what, self.shape, self.dtype, size, ours, ceiling, share)

    def writing(self, repeats: int) -> Rate:
        shard, plain = self.folder / "x.safetensors", self.folder / "plain"

        def ceiling() -> None:
            part = plain.with_suffix(".part")
            with part.open("wb") as file:
                for tensor in self.kept.values():
                    values: Any = tensor.view(torch.uint8).numpy()
                    file.write(values.reshape(-1))
            part.replace(plain)

        calls: dict[str, Call] = {
            "ours": lambda: write_shard(shard, self.kept, self.store.layers),
            "ceiling": ceiling,
        }
        size = sum(tensor.nbytes for tensor in self.kept.values())
        rate = self._rate("write", size, calls, repeats)
        shard.unlink()
        plain.unlink()
        return rate

    def reading(self, repeats: int) -> Iterator[Rate]:
        store, few = self.store, self._subset()
        batches = [*by_duration(self.utterances, BATCH_SECONDS)]
        middle = {u.id: _middle(store.frames(u)) for u in self.utterances}
        spans = [[middle[u.id] for u in batch] for batch in batches]
        manners: list[tuple[str, Callable[[], object], list[Tensor]]] = [
            (
                "read utterances",
                lambda: [store.read(u).shape for u in self.utterances],
                self._values(store.layers, {}),
            ),
            (
                "read batches",
                lambda: [store.batch(batch).spec for batch in batches],
                self._values(store.layers, {}),
            ),
            (
                f"{len(few.layers)} layers, batches",
                lambda: [few.batch(batch).spec for batch in batches],
                self._values(few.layers, {}),
            ),
            (
                "half of the frames, batches",
                lambda: [store.batch(b, s).spec for b, s in zip(batches, spans, strict=True)],
                self._values(store.layers, middle),
            ),
        ]
        for what, ours, values in manners:
            into = [torch.empty(one.shape) for one in values]
            calls: dict[str, Call] = {"ours": ours, "ceiling": _Copy(values, into)}
            yield self._rate(what, sum(one.nbytes for one in values), calls, repeats)

    def _values(self, layers: Sequence[int], spans: dict[str, slice]) -> list[Tensor]:
        """The stored values that a manner of reading needs, side by side in memory."""
        return [
            self.kept[self.store.key(u)][list(layers), spans.get(u.id, slice(None))].contiguous()
            for u in self.utterances
        ]

    def _subset(self) -> Store:
        """The same shards, of which every third layer is wanted."""
        wanted = self.store.layers[::3]
        few = Store(
            self.store.root,
            {},
            replace(self.store.spec, num_layers=len(wanted)),
            self.dtype,
            wanted,
        )
        assert few.folder == self.store.folder
        return few


class _Copy:
    def __init__(self, values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        self._pairs = [*zip(values, into, strict=True)]

    def __call__(self) -> None:
        for values, into in self._pairs:
            into.copy_(values)


def _middle(frames: int) -> slice:
    return slice(frames // 4, frames // 4 + frames // 2)


def bench_layouts(
    seconds: float,
    repeats: int,
    shapes: Sequence[tuple[int, int]],
    folder: Path | None = None,
    clock: Clock = perf_counter,
) -> Iterator[Layout]:
    """Reading from a mapped file, and fusion with its gradient of layers in memory."""
    for layers, dim in shapes:
        with TemporaryDirectory(dir=folder) as place:
            frames = int(50 * min(seconds, BATCH_SECONDS))
            yield from _layouts(Path(place), layers, dim, frames, repeats, clock)


def _layouts(
    folder: Path, layers: int, dim: int, frames: int, repeats: int, clock: Clock
) -> Iterator[Layout]:
    torch.manual_seed(0)
    apart = torch.randn(layers, frames, dim)
    together = apart.transpose(0, 1).contiguous()
    mapped = []
    for name, tensor in (("apart", apart), ("together", together)):
        path = folder / f"{name}.safetensors"
        write_shard(path, {"x": stored(tensor, "float16")[""]}, range(layers))
        handle = open_shard(path)
        assert shard_layers(handle) == tuple(range(layers))
        mapped.append(handle.get_tensor("x"))
    few, middle = slice(None, None, 3), _middle(frames)
    into, into_together = torch.empty_like(apart), torch.empty_like(together)
    total = WeightedSum(StackSpec(layers, dim, 50.0), tasks=[TASK])
    hconv = HConv(StackSpec(layers, dim, 50.0), tasks=[TASK])
    stack = LayerStack(tuple(apart[:, None]), torch.tensor([frames]), 50.0)
    pairs: dict[str, tuple[Call, Call]] = {
        "read": (lambda: into.copy_(mapped[0]), lambda: into_together.copy_(mapped[1])),
        "read every third layer": (
            lambda: into[few].copy_(mapped[0][few]),
            lambda: into_together[:, few].copy_(mapped[1][:, few]),
        ),
        "read half of the frames": (
            lambda: into[:, middle].copy_(mapped[0][:, middle]),
            lambda: into_together[middle].copy_(mapped[1][middle]),
        ),
        "weighted sum and backward": (
            lambda: total(stack, TASK).hidden.sum().backward(),
            lambda: summed_together(together, total.logits).sum().backward(),
        ),
        "HConv and backward": (
            lambda: hconv(stack, TASK).hidden.sum().backward(),
            lambda: hconv_together(together, hconv).sum().backward(),
        ),
    }
    for what, (first, second) in pairs.items():
        taken = seconds_in_turns({"apart": first, "together": second}, repeats, clock=clock)
        yield Layout(
            what,
            f"{layers} x {dim}",
            sorted(taken["apart"])[repeats // 2],
            sorted(taken["together"])[repeats // 2],
            median_ratio(taken["together"], taken["apart"]),
        )


def summed_together(frames: Tensor, logits: Tensor) -> Tensor:
    """A weighted sum of layers that lie side by side (T, L, D): one small product a frame."""
    return (logits.softmax(0)[None].expand(len(frames), 1, -1) @ frames)[:, 0]


def hconv_together(frames: Tensor, hconv: HConv) -> Tensor:
    """HConv of layers that lie side by side (T, L, D): a window is one matrix, read in place."""
    hidden = frames
    for conv in hconv.convs:
        assert isinstance(conv, torch.nn.Conv1d)
        taps = conv.weight.permute(0, 2, 1)  # (D', kernel, D), as layers lie in a frame
        rows = []
        for window in windows(hidden.shape[1], conv.kernel_size[0], hconv.stride):
            (first, begin), (last, end) = window[0], window[-1]
            part = hidden[:, begin : end + 1].reshape(len(hidden), -1)
            weight = taps[:, first : last + 1].flatten(1)
            rows.append(torch.nn.functional.linear(part, weight, conv.bias).relu())
        hidden = torch.stack(rows, 1)
    return hidden.transpose(1, 2).flatten(1)[:, : hconv.out_dim]
