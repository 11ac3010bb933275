"""Mean and standard deviation over the folds of a sweep, as leave-one-session-out is reported."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from speechfuse.experiments.sweep import Cell, Split, SweepFile, Tables
from speechfuse.metrics import full_name
from speechfuse.types import Table


def spread_tables(sweep: SweepFile, done: Sequence[Cell], split: Split = "test") -> list[Table]:
    """One table for each condition, if the sweep asks for them.

    The pooled table weighs utterances alike, this one folds.
    """
    if sweep.folds is None or not sweep.folds.spread:
        return []
    tables = Tables(done, split)
    return [_table(sweep, tables, condition) for condition in sweep.conditions]


def _table(sweep: SweepFile, tables: Tables, condition: str) -> Table:
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in sweep.rows:
        if tables.has(sweep.candidates(row), condition):
            found: dict[tuple[str, str], list[float]] = {}
            for fold in tables.folds(sweep.candidates(row), condition):
                for key, several in tables.of_row(sweep, row, condition, fold).items():
                    value = mean(one.point() for one in several)  # over seeds
                    found.setdefault(key, []).append(100 * value)
            cells[row] = {key: _cell(values) for key, values in found.items()}
    keys = list(dict.fromkeys(key for row in cells.values() for key in row))
    columns = ["", *(f"{task}: {full_name(metric)}" for task, metric in keys)]
    rows = [[row, *(mine.get(key, "-") for key in keys)] for row, mine in cells.items()]
    title = f"{sweep.title or sweep.name}{': ' if condition else ''}{condition}"
    return f"{title}\n%, mean and standard deviation over folds, of seeds the mean", columns, rows


def _cell(values: Sequence[float]) -> str:
    """Without a deviation where there is one fold alone."""
    return f"{mean(values):.1f}" + (f" \u00b1 {stdev(values):.1f}" if len(values) > 1 else "")
