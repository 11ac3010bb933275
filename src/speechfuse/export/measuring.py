"""A package beside the run in the library: what both say, and how long they take."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speechfuse.audio import SAMPLE_RATE
from speechfuse.clips import read_batch
from speechfuse.errors import ExportError, SpeechFuseError
from speechfuse.export.loading import Source
from speechfuse.export.parity import LOW_TOLERANCE, TOLERANCE, Parity, compare, random_batches
from speechfuse.export.run import Package
from speechfuse.measure import median_seconds
from speechfuse.taskdata import TaskData, corpora_folder, load_tasks
from speechfuse.types import Progress

SPEED_SECONDS = 10.0  # of audio that is timed
REPEATS = 3


def corpora(source: Source, needed: bool, progress: Progress | None) -> dict[str, TaskData]:
    """Of the run's tasks; none if a corpus is not here, and it is not needed or cannot be made."""
    names = [entry.corpus for entry in source.recipe.tasks.values()]
    if not needed and not all((corpora_folder() / n).exists() or Path(n).exists() for n in names):
        return {}
    with suppress(SpeechFuseError):
        return load_tasks(source.recipe, source.run.tasks(), progress)
    return {}


def sounds(source: Source, data: Mapping[str, TaskData]) -> list[NDArray[np.float32]]:
    """Clips of the development set; noise that comes and goes if there is none."""
    members = {u.id: u for one in data.values() for u in one.splits["dev"][:8]}
    if members:
        batch = read_batch([*members.values()], source.strictest)
        pairs = zip(batch.samples, batch.lengths.tolist(), strict=True)
        return [samples[:size].numpy() for samples, size in pairs]
    random = np.random.default_rng(0)
    time = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    return [
        (0.2 * np.sin(2 * np.pi * rate * time) ** 2 * random.standard_normal(len(time))).astype(
            np.float32
        )
        for rate in (0.7, 1.3, 2.9)
    ]


def compared(source: Source, folder: Path, data: Mapping[str, TaskData], batches: int) -> Parity:
    """Raises ExportError if a number is not what it should be."""
    drawn = random_batches(
        sounds(source, data), batches, source.min_samples, source.stretch_seconds
    )
    tolerance = LOW_TOLERANCE if source.low_precision else TOLERANCE
    parity = compare(Package(folder), source.reference, drawn, tolerance)
    if not parity.holds:
        worst = max(parity.tasks, key=lambda task: parity.tasks[task].largest)
        raise ExportError(
            f"what the graph gives for '{worst}' differs from the run by "
            f"{parity.tasks[worst].largest:.2g}, more than {tolerance:g}; nothing was written"
        )
    return parity


def told(parity: Parity) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(parity), "shortest": round(parity.shortest, 4)}


def speed(source: Source, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Seconds for ten of audio, all tasks, from samples to answers."""
    seconds = min(SPEED_SECONDS, source.stretch_seconds)
    random = np.random.default_rng(1)
    samples = (0.1 * random.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)
    tasks = [*source.tasks]
    calls: dict[str, Any] = {"library": lambda: source.reference((samples, SAMPLE_RATE), tasks)}
    threads = torch.get_num_threads()
    for name, folder in folders.items():
        calls[name] = partial(Package(folder, threads=threads), samples, tasks)
    taken = median_seconds(calls, REPEATS)
    return {"audio": seconds, "threads": threads, **taken}
