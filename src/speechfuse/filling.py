"""Make the shards of a plan: read audio, run the upstream, write, all three at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

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
    with _Maker(job, device) as maker:
        while left:
            of_others = []
            for shard in left:
                if rank and rank.asked():
                    raise KeyboardInterrupt
                made = maker.make(shard)
                if not made and not job.store.path(shard).exists():
                    of_others.append(shard)
                    continue
                done += len(shard.keys)
                if progress:
                    progress(f"layers of {job.name}", done, total)
            maker.finish()
            if left := of_others:
                time.sleep(WAIT)
    job.upstream.to("cpu")


class _Maker:
    """Makes shards: one is computed while the next audio is read and the last shard is written."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: tuple[Future[None], ExitStack] | None = None

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.finish()
        finally:
            self._reader.shutdown(cancel_futures=True)
            self._writer.shutdown()

    def make(self, shard: Shard) -> bool:
        """Compute a shard, to be written meanwhile; False if it is there or another has it.

        Raises:
            DataError: unreadable audio, or audio that is not what it was; a value that is not
                finite in the stored type; a disk that is full.
        """
        path = self._job.store.path(shard)
        with ExitStack() as held:
            if path.exists() or not held.enter_context(claimed(path)) or path.exists():
                return False
            tensors, facts = self._compute(shard)
            self.finish()
            write = self._writer.submit(shards.write_shard, path, tensors, shard.layers, **facts)
            self._writing = (write, held.pop_all())
        return True

    def finish(self) -> None:
        """Wait until the shard before is written."""
        if self._writing:
            (write, held), self._writing = self._writing, None
            with held:
                write.result()

    def _compute(self, shard: Shard) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors of a shard by name, and what its header tells; its batches are the plan's."""
        tensors: dict[str, Tensor] = {}
        wrong = size = 0.0
        ahead = self._reader.submit(self._read, shard.batches[0])
        for keys, after in zip_longest(shard.batches, shard.batches[1:]):
            wav = ahead.result()
            if after:
                ahead = self._reader.submit(self._read, after)
            for key, layers in zip(keys, self._layers(wav, shard.layers), strict=True):
                self._check(key, layers)
                kept = shards.stored(layers, self._job.store.dtype)
                if shards.SCALE in kept:
                    again = torch.empty_like(layers)
                    shards.restored(kept[""], kept[shards.SCALE], again)
                    wrong += float((again - layers).square().sum(dtype=torch.float64))
                    size += float(layers.square().sum(dtype=torch.float64))
                tensors |= {f"{key}{ending}": tensor for ending, tensor in kept.items()}
        return tensors, {shards.INT8: [wrong, size]} if size else {}

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
