"""One number of several conditions, as benchmarks have: the mean of the means of groups of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from speechfuse.experiments.sweep import Cell, Result, Split, SweepFile, Tables, results
from speechfuse.metrics import GroupMean


def averages(sweep: SweepFile, done: Sequence[Cell], split: Split = "test") -> Iterator[Result]:
    """Of every row that has all conditions to average, each metric that all of them have."""
    if sweep.average_conditions is None:
        return
    tables = Tables(done, split)
    found = {row: _evidence(sweep, tables, row) for row in sweep.rows}
    heading = f"mean over {', '.join(sweep.average_conditions)}"
    for row, (task, metric), result in results(sweep, tables, heading, found):
        published = sweep.rows[row].published_average.get(task, {}).get(metric)
        yield replace(result, published=published)


def _evidence(sweep: SweepFile, tables: Tables, row: str) -> dict[tuple[str, str], list[GroupMean]]:
    """Of a row, by task and metric: a mean for each seed, nothing if a condition is missing."""
    groups = (sweep.average_conditions or {}).values()
    conditions = dict.fromkeys(name for group in groups for name in group)
    if not all(tables.has(sweep.candidates(row), condition) for condition in conditions):
        return {}
    found = {condition: tables.of_row(sweep, row, condition) for condition in conditions}
    first, *others = found.values()
    return {
        key: [
            GroupMean([[found[name][key][seed] for name in group] for group in groups])
            for seed in range(len(several))
        ]
        for key, several in first.items()
        if all(key in other for other in others)
    }
