"""Run frozen upstreams over a corpus once and keep every layer."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from speechfuse import build
from speechfuse.audio import SAMPLE_RATE
from speechfuse.cache import shards
from speechfuse.cache.claims import claimed, sweep_claims
from speechfuse.cache.plans import Shard, make_shards, read_plans, save_plan
from speechfuse.cache.store import Store, evict, free_bytes
from speechfuse.clips import read_batch
from speechfuse.contracts import Upstream
from speechfuse.data.batching import by_duration
from speechfuse.errors import DataError
from speechfuse.launch import run_together
from speechfuse.ops import moved
from speechfuse.ranks import Rank
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData
from speechfuse.types import Progress, Utterance, Waveforms

VERSION = 3  # of what is stored; raise it when the same settings give other numbers
BATCH_SECONDS = 60.0  # audio in one forward pass, padding counted
WAIT = 0.2  # seconds between two looks at a shard that another process makes
SPLITS = ("train", "dev", "test")


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


def open_store(
    recipe: Recipe, name: str, upstream: Upstream, noise_snr: float | None = None
) -> Store:
    """The store of one upstream as this recipe has it; nothing is computed.

    What decides the layers is in its name: our version and transformers', which between them
    choose the path of attention; resampling; the upstream's weights, configuration and manner.
    """
    about = {
        "version": VERSION,
        "transformers": version("transformers"),
        "resampling": f"soxr HQ to {SAMPLE_RATE} Hz",
        "noise_snr": noise_snr,
        **build.layer_facts(recipe, name, upstream),
    }
    folder, dtype = Path(recipe.store.folder), recipe.store.dtype
    return Store(folder, about, upstream.plan.spec, dtype)


def extraction_jobs(
    recipe: Recipe, tasks: Mapping[str, TaskData], splits: Sequence[str] = SPLITS
) -> list[Job]:
    """What the tasks' utterances need of every frozen upstream, there already or not.

    Raises:
        DataError: audio that is gone.
        UpstreamError: an upstream that cannot be found.
    """
    by_noise: dict[float | None, list[Utterance]] = defaultdict(list)
    for data in tasks.values():
        by_noise[data.noise_snr] += [u for split in splits for u in data.splits[split]]
    tuned = build.tuned_upstreams(recipe)
    upstreams = {n: build.build_upstream(recipe, n) for n in recipe.upstreams if n not in tuned}
    jobs = []
    for noise, utterances in by_noise.items():
        for name, upstream in upstreams.items():
            store = open_store(recipe, name, upstream, noise)
            jobs.append(Job(name, noise, upstream, store, store.keys(utterances)))
    return jobs


def fill_stores(
    recipe: Recipe,
    tasks: Mapping[str, TaskData],
    progress: Progress | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, list[Store]]:
    """The stacks of every task's utterances from every frozen upstream, computed where missing.

    Raises:
        DataError: too little room for all the stacks, unreadable audio, too short a clip.
        UpstreamError: an upstream whose weights cannot be read.
    """
    jobs = extraction_jobs(recipe, tasks, splits)
    extract(recipe, jobs, progress)
    return {
        task: [job.store for job in jobs if job.noise_snr == data.noise_snr]
        for task, data in tasks.items()
    }


def extract(
    recipe: Recipe,
    jobs: Sequence[Job],
    progress: Progress | None = None,
    *,
    processes: int = 1,
    verify: bool = False,
) -> None:
    """Compute what is missing. Any number of processes and machines may do so at once.

    processes: that this one begins, each on a GPU of its own where there are any. verify: read
    every shard and compare its checksum, also of those that were found whole before.

    Raises:
        DataError: too little room for all the stacks, unreadable audio, too short a clip.
        UpstreamError: an upstream whose weights cannot be read.
    """
    for job in jobs:
        job.store.check(job.wanted.values(), again=verify)
    _make_room(recipe, jobs)
    work = []
    for job in jobs:  # all of them before an hour is spent on one
        if missing := [*job.missing.values()]:
            job.upstream.load()
            read_batch([min(missing, key=lambda u: u.duration or 0.0)], job.upstream)
            job.store.describe()
            sweep_claims(job.store.folder)
            if recipe.length_policy == "padded":
                _report_drift(job.name, job.upstream, missing)
            work.append((job, _plan(job, equal=recipe.length_policy == "equal")))
    if work and processes > 1:
        fresh = []  # loaded ones cannot be sent
        for job, planned in work:
            upstream = build.build_upstream(recipe, job.name)
            fresh.append((replace(job, upstream=upstream), planned))
        run_together(_fill_in_process, (fresh,), processes, progress)
    else:
        for job, planned in work:
            _fill(job, planned, best_device(), progress)
    for job, _ in work:
        job.store.look()


def _plan(job: Job, *, equal: bool) -> list[Shard]:
    """The shards that are to be made: those of plans that were not ended, and of a new one."""
    lacking = {key: job.store.lacks(key) for key in job.missing}
    chosen = []
    for shard in read_plans(job.store.folder):
        keys = shard.keys
        if all(lacking.get(key) == shard.layers for key in keys):
            chosen.append(shard)
            for key in keys:
                del lacking[key]
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key, layers in lacking.items():
        alike[layers].append(key)
    new: list[Shard] = []
    for layers, members in sorted(alike.items()):
        names = {id(job.wanted[key]): key for key in members}
        batches = [
            *by_duration(
                [job.wanted[key] for key in members],
                BATCH_SECONDS,
                silence=job.upstream.plan.silence,
                equal=equal,
            )
        ]
        new += make_shards(
            layers,
            [[names[id(u)] for u in batch] for batch in batches],
            [sum(u.duration or 0.0 for u in batch) for batch in batches],
            job.store.bytes_for(1.0, len(layers)),
        )
    if new:
        save_plan(job.store.folder, new)
    return chosen + new


def _fill_in_process(
    work: Sequence[tuple[Job, list[Shard]]], progress: Progress, rank: Rank
) -> None:
    """In one of several processes; claims tell them apart."""
    device = best_device()
    if device.type == "cuda":
        device = torch.device("cuda", rank.number % torch.cuda.device_count())
    for job, planned in work:
        _fill(job, planned, device, progress, rank)


def _fill(
    job: Job,
    planned: Sequence[Shard],
    device: torch.device,
    progress: Progress | None,
    rank: Rank | None = None,
) -> None:
    """Make every shard that nobody else makes; ends when all are there."""
    job.upstream.load()
    job.upstream.to(device)
    left, total = list(planned), sum(len(shard.keys) for shard in planned)

    def report() -> None:
        if progress:
            there = (shard for shard in planned if job.store.path(shard).exists())
            progress(f"layers of {job.name}", sum(len(shard.keys) for shard in there), total)

    with _Maker(job, device) as maker:
        while left:
            for shard in left:
                if rank and rank.asked():
                    raise KeyboardInterrupt
                if maker.make(shard):
                    report()
            maker.finish()
            report()
            left = [shard for shard in left if not job.store.path(shard).exists()]
            if left:
                time.sleep(WAIT)
    job.upstream.to("cpu")


class _Maker:
    """Makes shards: one is computed while the next audio is read and the last shard is written."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: tuple[Future[None], ExitStack] | None = None
        self._wrong = self._size = 0.0  # squares of what int8 changed, and of all

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.finish()
        finally:
            self._reader.shutdown(cancel_futures=True)
            self._writer.shutdown()
        if self._size:
            self._job.store.error = (self._wrong / self._size) ** 0.5

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
            tensors = self._compute(shard)
            self.finish()
            write = self._writer.submit(shards.write_shard, path, tensors, shard.layers)
            self._writing = (write, held.pop_all())
        return True

    def finish(self) -> None:
        """Wait until the shard before is written."""
        if self._writing:
            (write, held), self._writing = self._writing, None
            with held:
                write.result()

    def _compute(self, shard: Shard) -> dict[str, Tensor]:
        """Tensors of a shard by name; its batches are the plan's."""
        tensors: dict[str, Tensor] = {}
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
                    self._wrong += float((again - layers).square().sum(dtype=torch.float64))
                    self._size += float(layers.square().sum(dtype=torch.float64))
                tensors |= {f"{key}{ending}": tensor for ending, tensor in kept.items()}
        return tensors

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


def best_device() -> torch.device:
    """Where upstreams are run: on the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drift(upstream: Upstream, utterances: Sequence[Utterance]) -> float:
    """How far frames in a padded batch are from the same frames alone, relative root mean square.

    Zero but for rounding under `masked` and `equal`; what `padded` costs.
    """
    together = upstream(read_batch(utterances, upstream))
    error = scale = 0.0
    for row, utterance in enumerate(utterances):
        alone = upstream(read_batch([utterance], upstream))
        frames = int(alone.lengths[0])
        for one, other in zip(alone.layers, together.layers, strict=True):
            error += float((one[0] - other[row, :frames]).square().sum())
            scale += float(one[0].square().sum())
    return float((error / scale) ** 0.5)


def _report_drift(name: str, upstream: Upstream, utterances: Sequence[Utterance]) -> None:
    """Say what padding costs: the shortest clip beside the longest."""
    by_length = sorted(utterances, key=lambda u: u.duration or 0.0)
    share = drift(upstream, [by_length[0], by_length[-1]])
    logging.getLogger(__name__).warning(
        "length_policy padded: frames of upstream %s change by %.1f %% when the shortest clip is "
        "padded to the longest; masked and equal do not change them",
        name,
        100 * share,
    )


def _make_room(recipe: Recipe, jobs: Sequence[Job]) -> None:
    """Evict what was not used for longest, or refuse before anything is computed."""
    folder, budget = Path(recipe.store.folder), recipe.store.budget_gb * 1e9
    seconds = [sum(u.duration or 0.0 for u in job.wanted.values()) for job in jobs]
    whole = sum(job.store.bytes_for(s) for job, s in zip(jobs, seconds, strict=True))
    needed = sum(job.missing_bytes for job in jobs)
    wants = f"the layers of {sum(seconds) / 3600:.2f} h need {whole / 1e9:.1f} GB"
    if needed and whole > budget:
        raise DataError(
            f"{wants}, store.budget_gb is {recipe.store.budget_gb:g}; raise it, or use fewer "
            "utterances or layers, or store.dtype=int8"
        )
    used = set().union(*(job.store.shards_of(job.wanted.values()) for job in jobs))
    if gone := evict(folder, needed, budget, used) if needed else []:
        logging.getLogger(__name__).warning(
            "%d shards that were not used for longest were deleted from %s to stay within "
            "store.budget_gb %g",
            len(gone),
            folder,
            recipe.store.budget_gb,
        )
    free = free_bytes(folder)
    if needed > free:
        raise DataError(
            f"{wants}, {needed / 1e9:.1f} of them are missing and the disk of {folder} has "
            f"{free / 1e9:.1f}; free some, or set store.folder elsewhere"
        )
