"""Pictures of how far rows of a sweep are from the rows that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechfuse.contracts import Task
from speechfuse.experiments.panels import dress
from speechfuse.experiments.sweep import Result, SweepFile
from speechfuse.metrics import full_name


def difference_figures(
    sweep: SweepFile, tasks: Mapping[str, Task], results: Sequence[Result]
) -> Iterator[tuple[str, Any]]:
    """For each condition with differences a title and a figure, a panel for each task."""
    for condition in sweep.conditions:
        shown = [
            r
            for r in results
            if r.condition == condition and r.difference and r.metric == tasks[r.task].primary
        ]
        if shown:
            yield condition, _figure(sweep, tasks, shown)


def _figure(sweep: SweepFile, tasks: Mapping[str, Task], shown: Sequence[Result]) -> Any:
    """Rows from above as in the table, better to the right, whatever the metric."""
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(r.row for r in shown))
    names = list(dict.fromkeys(r.task for r in shown))
    size = (3.0 + 2.8 * len(names), 0.9 + 0.24 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    for axis, name in zip(
        figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True
    ):
        task = tasks[name]
        for result in (r for r in shown if r.task == name):
            assert result.difference is not None
            place = rows.index(result.row)
            better = result.difference if task.higher_is_better else -result.difference
            colour = "C0" if better.above(0) else "C3" if better.below(0) else "0.45"
            ends = [100 * end for end in better.ends]
            axis.plot(ends, [place, place], color=colour, linewidth=1.4)
            filled = colour if colour.startswith("C") else "white"
            axis.plot([100 * better.value], [place], "o", color=colour, mfc=filled, ms=5)
        axis.axvline(0, color="0.3", linewidth=0.8)
        dress(axis, f"{name}: {full_name(task.primary)}", "points better")
        axis.set_yticks(range(len(rows)), [_label(sweep, row) for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _label(sweep: SweepFile, row: str) -> str:
    own = sweep.rows[row].minus
    return f"{row}\nminus {own}" if own else row
