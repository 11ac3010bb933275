"""Run the cells of a sweep one after the other; what is finished is not run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from speechfuse.checkpoint import Run
from speechfuse.experiments.sweep import Cell, SweepFile, cells
from speechfuse.train import train_run
from speechfuse.types import Progress


def run_sweep(
    sweep: SweepFile,
    out: Path,
    *,
    rows: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Cell]:
    """Train and evaluate every cell; finished runs are appended to results.jsonl.

    Raises:
        SpeechFuseError: whatever is wrong with a cell; those before it stay.
    """
    todo = cells(sweep, out, rows)
    for number, cell in enumerate(todo):
        if progress:
            progress("runs", number, len(todo))
        finished = Run(cell.folder).finished
        metrics = train_run(cell.recipe, cell.folder, _named(progress, cell))
        if not finished:
            line = {
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
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    if progress:
        progress("runs", len(todo), len(todo))
    return todo


def _named(progress: Progress | None, cell: Cell) -> Progress | None:
    """Training steps under the row's name; everything else as it is."""
    if progress is None:
        return None

    def say(what: str, done: int, total: int) -> None:
        progress(cell.row if what == "training steps" else what, done, total)

    return say
