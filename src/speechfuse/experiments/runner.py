"""Run the cells of a sweep, in turn or some at a time; what is finished is not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from speechfuse import build
from speechfuse.cache.store import Store
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError
from speechfuse.experiments.sweep import Cell, SweepFile, cells
from speechfuse.extract import (
    Before,
    check_budget,
    extract,
    extraction_jobs,
    fill_stores,
    tell_int8,
)
from speechfuse.filling import Job
from speechfuse.recipe import Part, Recipe
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from speechfuse.types import Progress

Metrics = dict[str, Any]
Group = tuple[Recipe, dict[tuple[Path, tuple[int, ...]], Job]]  # by store and layers


def run_sweep(
    sweep: SweepFile,
    out: Path,
    *,
    rows: Sequence[str] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    before: Before | None = None,
) -> list[Cell]:
    """Train and evaluate every cell; newly finished runs are appended to results.jsonl.

    jobs: cells trained at a time, each in a process of its own with its share of the cores.
    before: called with what is to be extracted for all cells, and may refuse it.

    Raises:
        RunError: a cell's folder holds another run, and nothing is begun.
        SpeechFuseError: whatever else is wrong with a cell; those before it stay.
    """
    todo = cells(sweep, out, rows)
    for cell in todo:
        Run(cell.folder).check(cell.recipe)
        build.read_upstreams(cell.recipe)  # refuses what would not be stored exactly
    new = {cell.folder for cell in todo if not Run(cell.folder).finished}
    if jobs == 1:
        finished = _in_turn(todo, progress, before)
    else:
        finished = _together(todo, jobs, progress, before)
    for number, (cell, metrics) in enumerate(finished, start=1):
        if cell.folder in new:
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps(_line(cell, metrics, out)) + "\n")
        if progress:
            progress("runs", number, len(todo))
    return todo


def _reads(recipe: Recipe) -> list[Any]:
    """What decides which layers of which clips are stored; a seed or an interface does not."""
    return [
        recipe.upstreams,
        recipe.length_policy,
        recipe.store,
        recipe.fusion if recipe.store.reduce != "none" else None,
        *(
            (entry.kind or name, entry.corpus, entry.extra_training, entry.split)
            for name, entry in recipe.tasks.items()
        ),
        *((e.noise_snr, e.min_seconds, e.augment) for e in recipe.tasks.values()),
    ]


def _in_turn(
    todo: Sequence[Cell], progress: Progress | None, before: Before | None
) -> Iterator[tuple[Cell, Metrics]]:
    if before:
        _ask(_grouped(todo, progress), before)
    widened = _widened(todo)
    filled: list[list[Any]] = []
    for cell in todo:
        if not Run(cell.folder).finished:
            wide = widened(cell.recipe)
            if wide != cell.recipe and (read := _reads(wide)) not in filled:
                fill_stores(wide, load_tasks(wide, progress=progress), progress)
                filled.append(read)
        yield cell, train_run(cell.recipe, cell.folder, _named(progress, cell))


def _widened(todo: Sequence[Cell]) -> Callable[[Recipe], Recipe]:
    """Gives a recipe all layers that any cell reads of its encoders, so that each runs once."""
    read: dict[str, set[int] | None] = {}  # by encoder; none: every layer
    for cell in todo:
        for part in cell.recipe.upstreams.values():
            key, numbers = _encoder(part), part.options.get("layers")
            known = read.get(key, set())
            read[key] = None if numbers is None or known is None else known | {*numbers}

    def widen(recipe: Recipe) -> Recipe:
        if recipe.store.reduce != "none":  # a merged stack is of the layers that were merged
            return recipe
        upstreams = {}
        for name, part in recipe.upstreams.items():
            numbers = read[_encoder(part)]
            every = {"layers": None if numbers is None else sorted(numbers)}
            upstreams[name] = part.model_copy(update=every) if "layers" in part.options else part
        return recipe.model_copy(update={"upstreams": upstreams})

    return widen


def _encoder(part: Part) -> str:
    return json.dumps(part.without("layers"), sort_keys=True, default=str)


def _together(
    todo: Sequence[Cell], jobs: int, progress: Progress | None, before: Before | None
) -> Iterator[tuple[Cell, Metrics]]:
    """Layers are extracted first, with all cores, so that no two processes extract the same.

    What takes longest begins first, so that no core waits for it at the end.
    """
    held = _extracted(todo, progress, before)  # until all cells have ended
    context = get_context("spawn")  # a fork would inherit torch's threads
    said = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context, _begin, (said, threads)) as pool:
        left: dict[Future[Metrics], Cell] = {
            pool.submit(_train, cell): cell for cell in sorted(todo, key=_work, reverse=True)
        }
        try:
            while left:
                done, _ = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
                while not said.empty():
                    message = said.get()
                    if progress:
                        progress(*message)
                for future in done:
                    yield left.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            held.clear()


def _extracted(
    todo: Sequence[Cell], progress: Progress | None, before: Before | None
) -> list[Store]:
    """The stores of all cells, filled; none is evicted for another one as long as they are held.

    Raises:
        DataError: they are too large for the budget together, and nothing was extracted.
    """
    groups = _grouped(todo, progress)
    for recipe, jobs in groups:
        try:
            check_budget(recipe, [*jobs.values()])
        except DataError as error:
            raise DataError(f"rows at once: {error}; or --jobs 1, one row after another") from error
    if before:
        _ask(groups, before)
    stores = []
    for recipe, jobs in groups:
        for job in jobs.values():
            job.store.hold(job.store.shards_of(job.wanted))
        while jobs:  # one encoder in memory at a time
            _, job = jobs.popitem()
            made = [job] if job.missing else []
            extract(recipe, [job], progress)
            tell_int8(made)
            stores.append(job.store)
    return stores


def _grouped(todo: Sequence[Cell], progress: Progress | None) -> list[Group]:
    """What cells that are not finished read, by the settings of stores that a recipe has one of."""
    widened = _widened(todo)
    groups: dict[tuple[Any, ...], Group] = {}
    seen: list[list[Any]] = []
    for cell in todo:
        wide = widened(cell.recipe)
        if Run(cell.folder).finished or (read := _reads(wide)) in seen:
            continue
        seen.append(read)
        alike = wide.store.folder, wide.store.budget_gb, wide.length_policy
        _, jobs = groups.setdefault(alike, (wide, {}))
        for job in extraction_jobs(wide, load_tasks(wide, progress=progress)):
            place = job.store.folder, job.store.layers
            known = jobs.get(place, job)
            jobs[place] = replace(known, wanted={**known.wanted, **job.wanted})
    return [*groups.values()]


def _ask(groups: Sequence[Group], before: Before) -> None:
    """Of all that is to be extracted together, if there is anything."""
    if groups:
        before(groups[0][0], [job for _, jobs in groups for job in jobs.values()])


def _work(cell: Cell) -> int:
    """Parameters of the fusion times steps: roughly how long a cell takes beside the others."""
    recipe = cell.recipe
    with torch.device("meta"):
        fusion = build.build_fusion(recipe, build.stack_specs(recipe), list(recipe.tasks))
    return recipe.training.steps * sum(p.numel() for p in fusion.parameters())


def _begin(said: Any, threads: int) -> None:
    """In a new process: its share of the cores, and where to tell how far it is."""
    global _said
    _said = said
    torch.set_num_threads(threads)


_said: Any = None


def _train(cell: Cell) -> Metrics:
    def say(what: str, done: int, total: int) -> None:
        _said.put((what, done, total))

    return train_run(cell.recipe, cell.folder, _named(say, cell))


def _line(cell: Cell, metrics: Metrics, out: Path) -> dict[str, Any]:
    return {
        "row": cell.row,
        "condition": cell.condition,
        "fold": cell.fold,
        "seed": cell.seed,
        "folder": str(cell.folder.relative_to(out)),
        "test": {
            task: {name: round(metric["value"], 5) for name, metric in scores.items()}
            for task, scores in metrics["test"].items()
        },
    }


def _named(progress: Progress | None, cell: Cell) -> Progress | None:
    """Training steps under the row's name; everything else as it is."""
    if progress is None:
        return None

    def say(what: str, done: int, total: int) -> None:
        progress(cell.row if what == "training steps" else what, done, total)

    return say
