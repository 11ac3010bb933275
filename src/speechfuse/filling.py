"""Make the shards of a plan: read audio, run the upstream, write, all three at once."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from speechfuse.cache import shards
from speechfuse.cache.claims import claimed
from speechfuse.cache.plans import Shard
from speechfuse.cache.store import Store
from speechfuse.clips import read_batch
from speechfuse.contracts import Upstream
from speechfuse.errors import DataError
from speechfuse.ops import moved
from speechfuse.ranks import Rank
from speechfuse.types import Progress, Utterance, Waveforms

AHEAD = {"cpu": 1, "cuda": min(4, os.cpu_count() or 1)}  # batches that are read meanwhile
WAIT = 0.2  # seconds between two looks at shards that other processes make


@dataclass(frozen=True)
class Job:
    """One frozen upstream over all utterances that are to have its layers."""

    name: str
    noise_snr: float | None
    upstream: Upstream
    store: Store
    wanted: Mapping[str, Utterance]  # by key

    @property
    def missing(self) -> dict[str, Utterance]:
        return {key: u for key, u in self.wanted.items() if self.store.lacks(key)}

    @property
    def missing_bytes(self) -> float:
        """What will be written."""
        return sum(
            self.store.bytes_for(u.duration or 0.0, len(self.store.lacks(key)))
            for key, u in self.missing.items()
        )

    @property
    def int8_error(self) -> float | None:
        """Of what is stored of it, relative root mean square; None if it is not known."""
        return self.store.int8_error(self.wanted)


def fill(
    job: Job,
    planned: Sequence[Shard],
    device: torch.device,
    progress: Progress | None,
    rank: Rank | None = None,
) -> None:
    """Make every shard that nobody else makes; ends when all are there."""
    job.upstream.load()
    job.upstream.to(device)
    left, done, total = list(planned), 0, sum(len(shard.keys) for shard in planned)

    def there(shard: Shard) -> None:
        nonlocal done
        done += len(shard.keys)
        if progress:
            progress(f"layers of {job.name}", done, total)
        if rank and rank.asked():
            raise KeyboardInterrupt

    with _Maker(job, device, there) as maker:
        while left:
            if left := maker.make(left):
                time.sleep(WAIT)
            if rank and rank.asked():
                raise KeyboardInterrupt
    job.upstream.to("cpu")


@dataclass
class _Made:
    """A shard's tensors by name, and squares of what int8 changed and of all that was stored."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    wrong: float = 0.0
    size: float = 0.0


class _Maker:
    """Makes shards: one is computed while the next audio is read and the last shard is written."""

    def __init__(self, job: Job, device: torch.device, there: Callable[[Shard], None]) -> None:
        """there: is told each shard that was found, or was computed."""
        self._job, self._device, self._there = job, device, there
        self._ahead = AHEAD[device.type]
        self._readers, self._writer = ThreadPoolExecutor(self._ahead), ThreadPoolExecutor(1)
        self._claims: dict[Shard, ExitStack] = {}
        self._writing: tuple[Future[None], Shard] | None = None

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._finish()
        finally:
            self._readers.shutdown(cancel_futures=True)
            self._writer.shutdown()
            for claim in self._claims.values():
                claim.close()

    def make(self, planned: Sequence[Shard]) -> list[Shard]:
        """Those that others are at work on; the rest are there in the end.

        Raises:
            DataError: unreadable audio, or audio that is not what it was; a value that is not
                finite in the stored type; a disk that is full.
        """
        of_others: list[Shard] = []
        made = _Made()
        for shard, keys, wav in self._read_ahead(self._batches(planned, of_others)):
            self._compute(shard, keys, wav, made)
            if keys == shard.batches[-1]:
                self._finish()
                self._writing = (self._write(shard, made), shard)
                made = _Made()
                self._there(shard)
        self._finish()
        return of_others

    def _batches(
        self, planned: Sequence[Shard], of_others: list[Shard]
    ) -> Iterator[tuple[Shard, tuple[str, ...]]]:
        """Of the shards that nobody has; each is claimed when its first batch is asked for."""
        for shard in planned:
            path = self._job.store.path(shard)
            with ExitStack() as claim:
                mine = not path.exists() and claim.enter_context(claimed(path))
                if path.exists():  # made before it could be claimed, perhaps
                    self._there(shard)
                elif mine:
                    self._claims[shard] = claim.pop_all()
                    yield from ((shard, keys) for keys in shard.batches)
                else:
                    of_others.append(shard)

    def _read_ahead(
        self, batches: Iterator[tuple[Shard, tuple[str, ...]]]
    ) -> Iterator[tuple[Shard, tuple[str, ...], Waveforms]]:
        """Each with its audio, while so many of those that follow are read."""
        waiting: deque[tuple[Shard, tuple[str, ...], Future[Waveforms]]] = deque()
        for shard, keys in batches:
            waiting.append((shard, keys, self._readers.submit(self._read, keys)))
            if len(waiting) > self._ahead:
                shard, keys, wav = waiting.popleft()
                yield shard, keys, wav.result()
        for shard, keys, wav in waiting:
            yield shard, keys, wav.result()

    def _write(self, shard: Shard, made: _Made) -> Future[None]:
        facts = {shards.INT8: [made.wrong, made.size]} if made.size else {}
        path = self._job.store.path(shard)
        return self._writer.submit(shards.write_shard, path, made.tensors, shard.layers, **facts)

    def _finish(self) -> None:
        """Wait until the shard before is written."""
        if self._writing:
            (write, shard), self._writing = self._writing, None
            with self._claims.pop(shard):
                write.result()

    def _compute(self, shard: Shard, keys: Sequence[str], wav: Waveforms, made: _Made) -> None:
        """Add what is kept of a batch's utterances; the batch is the plan's."""
        for key, layers in zip(keys, self._layers(wav, shard.layers), strict=True):
            self._check(key, layers)
            kept = shards.stored(layers, self._job.store.dtype)
            if shards.SCALE in kept:
                again = torch.empty_like(layers)
                shards.restored(kept[""], kept[shards.SCALE], again)
                made.wrong += float((again - layers).square().sum(dtype=torch.float64))
                made.size += float(layers.square().sum(dtype=torch.float64))
            made.tensors |= {f"{key}{ending}": tensor for ending, tensor in kept.items()}

    def _read(self, keys: Sequence[str]) -> Waveforms:
        """The audio of a batch, if it still is what the plan was made for."""
        job = self._job
        wav = read_batch([job.wanted[key] for key in keys], job.upstream, job.noise_snr)
        for key in keys:
            utterance = job.wanted[key]
            if job.store.key(utterance) != key:
                raise DataError(
                    f"{utterance.audio} changed since the extraction began; run it again"
                )
        if self._device.type == "cuda":
            return replace(wav, samples=wav.samples.pin_memory())
        return wav

    @torch.no_grad()
    def _layers(self, wav: Waveforms, wanted: Sequence[int]) -> Iterator[Tensor]:
        """Of each utterance those layers (L, T, D), in memory and no wider than they are stored."""
        store = self._job.store
        carried = torch.float32 if store.dtype == "int8" else shards.DTYPES[store.dtype]
        lengths, states = self._job.upstream.stream(moved(wav, self._device))
        kept: list[Tensor] = []
        for layer, hidden in zip(store.layers, states, strict=False):
            if layer in wanted:
                kept.append(hidden.to(carried).cpu())
            if len(kept) == len(wanted):  # blocks above are not computed
                break
        for row, frames in enumerate(lengths.tolist()):
            yield torch.stack([hidden[row, :frames] for hidden in kept])

    def _check(self, key: str, layers: Tensor) -> None:
        if not torch.isfinite(layers).all():
            name, dtype = self._job.wanted[key].id, self._job.store.dtype
            raise DataError(
                f"a layer of utterance {name} is not finite as {dtype}; with float16 try "
                "store.dtype=bfloat16, else look at the clip"
            )
