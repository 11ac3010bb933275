"""Run frozen upstreams over a corpus once and keep every layer."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from speechfuse import build
from speechfuse.audio import SAMPLE_RATE
from speechfuse.cache.claims import sweep_claims
from speechfuse.cache.plans import Shard, make_shards, read_plans, save_plan
from speechfuse.cache.shards import sweep_parts
from speechfuse.cache.store import Store, evict, free_bytes
from speechfuse.clips import read_batch
from speechfuse.contracts import Upstream
from speechfuse.data.batching import batch_seconds, by_duration
from speechfuse.errors import DataError
from speechfuse.filling import Job, fill
from speechfuse.launch import run_together
from speechfuse.measure import best_device
from speechfuse.ranks import Rank
from speechfuse.rates import duration, find_rates
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData
from speechfuse.types import Progress, Table, Utterance

VERSION = 5  # of what is stored; raise it when the same settings give other numbers
SPLITS = ("train", "dev", "test")
Before = Callable[[Recipe, Sequence[Job]], None]  # asked before anything is computed
Work = tuple[Job, list[Shard]]


def open_store(
    recipe: Recipe, name: str, upstream: Upstream, noise_snr: float | None = None
) -> Store:
    """The store of one upstream as this recipe has it; nothing is computed.

    What decides the layers is in its name: our version and transformers'; resampling; the kind of
    device that computes them here, whose kernels are others; the upstream's weights, configuration
    and manner, which names its path of attention; the code of parts of the user's own.
    """
    about = {
        "version": VERSION,
        "transformers": version("transformers"),
        "resampling": f"soxr HQ to {SAMPLE_RATE} Hz",
        "device": _kernels(best_device()),
        "noise_snr": noise_snr,
        **build.layer_facts(recipe, name, upstream),
    }
    folder, dtype = Path(recipe.store.folder), recipe.store.dtype
    return Store(folder, about, upstream.plan.spec, dtype, upstream.layers, pooled=upstream.pools)


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
    upstreams = {n: up for n, up in build.read_upstreams(recipe).items() if n not in tuned}
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
    before: Before | None = None,
    rank: Rank | None = None,
) -> dict[str, list[Store]]:
    """The stacks of every task's utterances from every frozen upstream, computed where missing.

    before: called with what there is to do, and may refuse it. rank: of this process among those
    that train together, which all extract. One that is alone begins as many as will train where
    each has a GPU; the threads of a CPU are one's, and its files the same bytes however many train.

    Raises:
        DataError: too little room for all the stacks, unreadable audio, too short a clip.
        UpstreamError: an upstream whose weights cannot be read.
    """
    rank = rank or Rank()
    leads = rank.local == 0
    with rank.first(leads):  # of each machine one asks and plans; the others find its plan
        jobs = extraction_jobs(recipe, tasks, splits)
        if before and leads:
            before(recipe, jobs)
        work = _planned(recipe, jobs, progress, leads=leads)
    shards = sum(len(planned) for _, planned in work)
    gpus = min(recipe.training.devices or 1, torch.cuda.device_count(), shards)
    _make(recipe, work, progress, gpus if rank.count == 1 else 1, rank)
    if rank.number == 0:
        tell_int8([job for job, _ in work])
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
    work = _planned(recipe, jobs, progress, verify=verify)
    _make(recipe, work, progress, processes, Rank())


def _planned(
    recipe: Recipe,
    jobs: Sequence[Job],
    progress: Progress | None,
    *,
    verify: bool = False,
    leads: bool = True,
) -> list[Work]:
    """The shards that are to be made of each job that lacks some.

    leads: another one has looked at what is there and made room, if not.
    """
    for job in jobs:
        job.store.hold(job.store.shards_of(job.wanted))
    if leads:
        for job in jobs:
            sweep_parts(job.store.folder)  # what the killed have left
            sweep_claims(job.store.folder)
            job.store.check(job.wanted, again=verify, progress=progress)
        _make_room(recipe, jobs)
    work = []
    for job in jobs:  # all of them before an hour is spent on one
        if missing := [*job.missing.values()]:
            job.upstream.load()
            read_batch([min(missing, key=lambda u: u.duration or 0.0)], job.upstream)
            job.store.describe()
            if leads and recipe.length_policy == "padded":
                _report_drift(job.name, job.upstream, missing)
            planned = _plan(job, equal=recipe.length_policy == "equal")
            job.store.hold(map(job.store.path, planned))
            work.append((job, planned))
    return work


def _make(
    recipe: Recipe, work: Sequence[Work], progress: Progress | None, processes: int, rank: Rank
) -> None:
    """Fill the stores, in so many new processes if more than one; claims tell all apart."""
    if work and processes > 1:
        fresh = []  # loaded ones cannot be sent
        for job, planned in work:
            upstream = build.read_upstreams(recipe)[job.name]
            fresh.append((replace(job, upstream=upstream), planned))
        called = "extracting process"
        run_together(_fill, (fresh,), processes, progress, called, "shard")
    else:
        _fill(work, progress, rank)
    for job, _ in work:
        job.store.look()


def int8_lines(jobs: Sequence[Job]) -> list[str]:
    """How far what is stored as int8 is from what was computed."""
    errors = {job.name: job.int8_error for job in jobs}
    return [
        f"int8 of {name}: off by {100 * error:.2f} %, relative rms"
        for name, error in errors.items()
        if error is not None
    ]


def tell_int8(made: Sequence[Job]) -> None:
    """The same in the log, of jobs of which something was computed."""
    for line in int8_lines(made):
        logging.getLogger(__name__).warning(line)


def extraction_table(
    recipe: Recipe, jobs: Sequence[Job], processes: int = 1
) -> tuple[Table, float, float]:
    """What is there and what is missing, for reading; bytes and seconds that are missing.

    Seconds: the upstream's multiply-adds at the rate of a large matrix product on this machine,
    times as many processes as find a GPU, or cores, of their own.
    """
    upstreams = {str(number): job.upstream for number, job in enumerate(jobs)}
    rates, how = find_rates(upstreams, best_device(), {})
    if processes > 1:
        how += f", {processes} processes"
    rows, size, seconds = [], 0.0, 0.0
    for job, rate in zip(jobs, rates.values(), strict=True):
        missing = sum(u.duration or 0.0 for u in job.missing.values())
        takes = missing / rate / _at_once(processes)
        noise = "" if job.noise_snr is None else f", noise at {job.noise_snr:g} dB"
        rows.append(
            [
                f"{job.name}{noise}",
                f"{job.store.spec.num_layers} x {job.store.spec.dim}",
                f"{len(job.wanted):,}",
                f"{sum(u.duration or 0.0 for u in job.wanted.values()) / 3600:.2f}",
                f"{len(job.wanted) - len(job.missing):,}",
                f"{missing / 3600:.2f}",
                f"{job.missing_bytes / 1e9:.2f}",
                duration(takes),
            ]
        )
        size, seconds = size + job.missing_bytes, seconds + takes
    columns = ["upstream", "layers x width", "utterances", "hours", "stored", "hours to compute"]
    store = recipe.store
    title = f"Layers in {store.folder} ({store.dtype}, budget {store.budget_gb:g} GB; times {how})"
    return (title, [*columns, "GB", "about"], rows), size, seconds


def _at_once(processes: int) -> float:
    """How many times as fast so many processes are: each has a GPU, or its part of the threads."""
    if best_device().type == "cuda":
        return min(processes, torch.cuda.device_count())
    return max(1.0, min(processes, os.cpu_count() or 1) / torch.get_num_threads())


def _kernels(device: torch.device) -> str:
    """What computes here, and what it rounds to TF32 as it is set to."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    convolutions: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    if hasattr(convolutions, "conv"):  # torch 2.9: the older names fail once these are set
        rounded = [one.fp32_precision == "tf32" for one in (convolutions.conv, products)]
    else:
        rounded = [convolutions.allow_tf32, products.allow_tf32]
    both = zip(("convolutions", "products"), rounded, strict=True)
    named = [f"{name} in {'TF32' if tf32 else 'float32'}" for name, tf32 in both]
    return ", ".join([f"cuda {major}.{minor}", *named])


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
                batch_seconds(best_device()),
                silence=job.upstream.plan.silence,
                equal=equal,
            )
        ]
        seconds = [sum(u.duration or 0.0 for u in batch) for batch in batches]
        rate = len(members) / max(1.0, sum(seconds))
        new += make_shards(
            layers,
            [[names[id(u)] for u in batch] for batch in batches],
            seconds,
            job.store.bytes_for(1.0, len(layers), utterances=rate),
        )
    if new:
        save_plan(job.store.folder, new)
    return chosen + new


def _fill(work: Sequence[Work], progress: Progress | None, rank: Rank) -> None:
    """On this process's own GPU, if there is one."""
    device = best_device()
    if device.type == "cuda":
        device = torch.device("cuda", rank.local % torch.cuda.device_count())
    for job, planned in work:
        fill(job, planned, device, progress, rank)


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


def check_budget(recipe: Recipe, jobs: Sequence[Job]) -> None:
    """Raises DataError if something is missing, and all could not be there together."""
    wants, whole = _wants(jobs)
    if whole > recipe.store.budget_gb * 1e9 and any(job.missing for job in jobs):
        raise DataError(
            f"{wants}, store.budget_gb is {recipe.store.budget_gb:g}; raise it, or use fewer "
            "utterances or layers, or store.dtype=int8"
        )


def _wants(jobs: Sequence[Job]) -> tuple[str, float]:
    """What all layers take, in words and in bytes."""
    seconds = [sum(u.duration or 0.0 for u in job.wanted.values()) for job in jobs]
    whole = sum(
        job.store.bytes_for(s, utterances=len(job.wanted))
        for job, s in zip(jobs, seconds, strict=True)
    )
    return f"the layers of {sum(seconds) / 3600:.2f} h need {whole / 1e9:.1f} GB", whole


def _make_room(recipe: Recipe, jobs: Sequence[Job]) -> None:
    """Evict what was not used for longest, or refuse before anything is computed."""
    check_budget(recipe, jobs)
    folder, budget = Path(recipe.store.folder), recipe.store.budget_gb * 1e9
    needed = sum(job.missing_bytes for job in jobs)
    used = set().union(*(job.store.shards_of(job.wanted) for job in jobs))
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
        wants, _ = _wants(jobs)
        raise DataError(
            f"{wants}, {needed / 1e9:.1f} of them are missing and the disk of {folder} has "
            f"{free / 1e9:.1f}; free some, or set store.folder elsewhere"
        )
