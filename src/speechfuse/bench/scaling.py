"""How extraction and an epoch grow with encoders, layers, hours and processes, and where they bend.

Everything as a recipe does it, with narrow encoders of random weights: what is looked for is the
exponent of the cost, 1 where twice as much takes twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from speechfuse.bench.epoch import Place, Training
from speechfuse.extract import extract, extraction_jobs
from speechfuse.measure import Clock
from speechfuse.taskdata import load_tasks
from speechfuse.types import Table

NARROW: Mapping[str, Any] = {
    "model_type": "hubert",
    "hidden_size": 128,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": [64] * 7,
}
BEND = 0.2  # by which exponents on both sides of a value differ


@dataclass(frozen=True)
class Size:
    """What is extracted and trained on."""

    encoders: int = 1
    layers: int = 13
    share: float = 0.5  # of the most speech
    processes: int = 1


AXES: Mapping[str, Sequence[Size]] = {
    "encoders": [Size(encoders=n) for n in (1, 2, 4)],
    "layers": [Size(layers=n) for n in (1, 13, 25)],
    "share": [Size(share=part) for part in (0.25, 0.5, 1.0)],
    "processes": [Size(share=1.0, processes=n) for n in (1, 2)],
}


@dataclass(frozen=True)
class Scaling:
    """Medians of seconds along one axis."""

    axis: str
    values: Sequence[float]
    extraction: Sequence[float]
    epoch: Sequence[float]


def scaling_table(
    hours: float, repeats: int, clock: Clock = perf_counter, config: Mapping[str, Any] = NARROW
) -> Table:
    """What `bench_scaling` measures, for reading. hours: the most speech."""
    rows = []
    for one in bench_scaling(hours, repeats, clock, config):
        scale = hours if one.axis == "share" else 1.0
        name = "hours" if one.axis == "share" else one.axis
        row = [f"{name} {', '.join(f'{scale * value:g}' for value in one.values)}"]
        for seconds in (one.extraction, one.epoch):
            row.append(", ".join(f"{s:.2f}" for s in seconds))
            row.append(f"{exponent(one.values, seconds):.2f}")
            row.append(
                ", ".join(f"{scale * at:g}" for at in bends(one.values, seconds)) or "nowhere"
            )
        rows.append(row)
    columns = ["", "extraction s", "exponent", "bends at", "epoch s", "exponent", "bends at"]
    threads = torch.get_num_threads()
    title = (
        f"Scaling about 1 encoder, 13 layers of {config['hidden_size']}, {hours / 2:g} h, "
        f"1 process ({hours:g} h for processes), {threads} thread{'s' * (threads > 1)}, "
        f"medians of {repeats}" + ", processor time but for processes" * (clock is process_time)
    )
    return title, columns, rows


def bench_scaling(
    hours: float,
    repeats: int,
    clock: Clock = perf_counter,
    config: Mapping[str, Any] = NARROW,
    axes: Mapping[str, Sequence[Size]] = AXES,
) -> Iterator[Scaling]:
    """Along every axis; what several axes have in common is measured for each."""
    with TemporaryDirectory() as folder:
        places = {
            share: Place(Path(folder) / f"{share:g}", 3600 * hours * share, config)
            for share in sorted({size.share for sizes in axes.values() for size in sizes})
        }
        first = next(iter(places.values()))
        _seconds(first, Size(layers=1), clock)  # warming up
        for axis, sizes in axes.items():
            timer = perf_counter if axis == "processes" else clock  # of them all
            turns = [[_seconds(places[s.share], s, timer) for s in sizes] for _ in range(repeats)]
            extraction, epoch = (
                [median(turn[number][part] for turn in turns) for number in range(len(sizes))]
                for part in (0, 1)
            )
            yield Scaling(axis, [getattr(s, axis) for s in sizes], extraction, epoch)


def _seconds(place: Place, size: Size, clock: Clock) -> tuple[float, float]:
    """Of the extraction, and of an epoch on what it stored."""
    with TemporaryDirectory(dir=place.folder) as folder:
        recipe = place.recipe(
            "emotion",
            "weighted_sum",
            range(size.encoders),
            options={"layers": spread(size.layers)},
            store={"folder": folder},
            training={"devices": size.processes},
        )
        tasks = load_tasks(recipe)
        jobs = extraction_jobs(recipe, tasks)
        for job in jobs:
            job.upstream.load()
        began = clock()
        extract(recipe, jobs, processes=size.processes)
        extraction = clock() - began
        one = Training(recipe, tasks, [job.store for job in jobs], Path(folder) / "runs")
        return extraction, one.epoch(one.stores, clock)


def spread(layers: int, depth: int = NARROW["num_hidden_layers"]) -> list[int]:
    """So many of the states 0 to depth, the last one among them.

    >>> spread(1), spread(3)
    ([24], [0, 12, 24])
    """
    return [depth] if layers == 1 else [round(i * depth / (layers - 1)) for i in range(layers)]


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Of the power law that fits best: 1 is proportional, 0 is for nothing."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def bends(values: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Where the exponent before a value and that after it differ."""
    pairs = pairwise(zip(values, seconds, strict=True))
    steps = [exponent([a, b], [s, t]) for (a, s), (b, t) in pairs]
    return [
        value
        for value, (before, after) in zip(values[1:-1], pairwise(steps), strict=True)
        if abs(after - before) > BEND
    ]
