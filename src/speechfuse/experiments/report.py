"""The report of a sweep: one self-contained HTML file with tables, curves and layer pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechfuse import build
from speechfuse.catalog import trusted_code
from speechfuse.checkpoint import Run
from speechfuse.experiments.abstract import abstract
from speechfuse.experiments.averages import averages
from speechfuse.experiments.claims import claim_tables
from speechfuse.experiments.diagnosis import diagnose
from speechfuse.experiments.differences import difference_figures
from speechfuse.experiments.layers import layer_figure, run_layer_use
from speechfuse.experiments.panels import dress, svg, write_page
from speechfuse.experiments.spread import spread_tables
from speechfuse.experiments.sweep import (
    Cell,
    Result,
    Split,
    SweepFile,
    Tables,
    speakers_of,
    summarise,
)
from speechfuse.metrics import full_name, percent, signed, signed_cell
from speechfuse.text import NORMALISER
from speechfuse.types import Table

NAME_OF = {"dev": "development", "test": "test"}


def result_tables(
    sweep: SweepFile,
    done: Sequence[Cell],
    split: Split = "test",
    results: Sequence[Result] | None = None,
) -> list[Table]:
    """One table for each condition, and one of their average if the sweep has it: a row for each
    system, a column for each metric.

    A cell holds a value, a line with its interval, and if there is a baseline a third line with
    the difference to it. results: those of `summarise`, computed here if left out.
    """
    results = list(summarise(sweep, done, split)) if results is None else results
    tables = [
        _table(sweep, done, condition, [r for r in results if r.condition == condition], split)
        for condition in sweep.conditions
    ]
    if mean := list(averages(sweep, done, split)):
        title, columns, rows = _table(sweep, (), mean[0].condition, mean, split)
        if any(len(group) > 1 for group in (sweep.average_conditions or {}).values()):
            title += "; conditions of one group are averaged first"
        tables.append((title, columns, rows))
    return tables


def _table(
    sweep: SweepFile,
    done: Sequence[Cell],
    condition: str,
    results: Sequence[Result],
    split: Split,
) -> Table:
    keys = list(dict.fromkeys((r.task, r.metric) for r in results))
    compared = {(r.task, r.metric) for r in results if r.published is not None}
    gained = {(r.task, r.metric) for r in results if r.gain is not None}
    columns = [""]
    for key in keys:
        name = _column(*key, keys)
        columns += [name, "published"] if key in compared else [name]
        columns += ["relative gain"] if key in gained else []
    columns += ["trained parameters", "seconds"] if done else []  # which conditions differ in
    rows = []
    for row in dict.fromkeys(r.row for r in results):
        mine = {(r.task, r.metric): r for r in results if r.row == row}
        own = sweep.rows[row].minus
        cells = [f"{row}\nminus '{own}'" if own else row]
        for key in keys:
            result = mine.get(key)  # none where the row lacks the task
            text = percent(result.value) if result else "-"
            if result and result.difference is not None:
                text += f"\n{signed(result.difference)}"
            cells.append(text)
            if key in compared:
                number = result.published if result else None
                cells.append("" if number is None else f"{number:g}")
            if key in gained:
                cells.append(signed_cell(result.gain) if result and result.gain else "")
        rows.append([*cells, *(_cost(done, row, condition) if done else [])])
    seeds = max((r.seeds for r in results), default=0)
    title = f"{sweep.title or sweep.name}{': ' if condition else ''}{condition}"
    drawn = "" if seeds < 2 else " over speakers and seeds"
    title += f"\n% with 95 % interval{drawn}; {speakers_of(results)} {NAME_OF[split]} speakers"
    title += f", {_count(seeds, 'seed')}"
    if any(r.difference for r in results):
        title += f"; third line: minus {_reference(sweep)}, paired"
    if gained:
        title += "; relative gain: over the best of its models alone, % of that one"
    return title, columns, rows


def _reference(sweep: SweepFile) -> str:
    """What differences are to."""
    named = ["the row that is named"] if any(row.minus for row in sweep.rows.values()) else []
    return " or ".join([*([f"'{sweep.baseline}'"] if sweep.baseline else []), *named])


def _column(task: str, metric: str, keys: Sequence[tuple[str, str]]) -> str:
    """A metric's name, with its task where several tasks have it."""
    shared = sum(other == metric for _, other in keys) > 1
    return f"{task}: {full_name(metric)}" if shared else full_name(metric)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cost(done: Sequence[Cell], row: str, condition: str) -> list[str]:
    metrics = [Run(c.folder).metrics() for c in done if c.row == row and c.condition == condition]
    if not metrics:
        return ["", ""]
    one = metrics[0]  # what tasks share counts once; runs from before that was kept add up tasks
    parameters = one.get("all_parameters", sum(one["parameters"].values()))
    return [f"{parameters:,}", f"{sum(m['seconds'] for m in metrics) / len(metrics):.0f}"]


def write_report(sweep: SweepFile, done: Sequence[Cell], out: Path) -> Path:
    """Write OUT/report.html from what is in the run folders."""
    results = list(summarise(sweep, done))
    claims, failures = claim_tables(sweep, done), diagnose(sweep, done)
    folds = len({cell.fold for cell in done})
    tasks = Tables(done, "test").tasks
    return write_page(
        "report.html.j2",
        out,
        title=sweep.title or sweep.name,
        normaliser=NORMALISER,
        tables=[*result_tables(sweep, done, results=results), *spread_tables(sweep, done)],
        differences=[
            (title, svg(figure)) for title, figure in difference_figures(sweep, tasks, results)
        ],
        reference=_reference(sweep),
        abstract=abstract(
            sweep,
            tasks,
            results,
            [*averages(sweep, done)],
            folds,
            claims,
            Counter(f.kind for f in failures),
        ),
        claims=claims,
        warnings=[f.line for f in failures],
        origins=pseudo_labels(done),
        curves=svg(_curve_figure(done)),
        conflict=any(cell.recipe.training.log_conflict for cell in done),
        layers=[(title, svg(figure)) for title, figure in _layer_figures(done)],
        versions=(done[0].folder / "versions.txt").read_text().splitlines(),
        runs=[(c.row, c.condition, c.seed, c.folder.relative_to(out)) for c in done],
    )


def pseudo_labels(done: Sequence[Cell]) -> list[str]:
    """One line for each task and teacher: which rows learn from how many of its labels."""
    found: dict[str, dict[str, None]] = {}
    for cell in done:
        for task, texts in Run(cell.folder).metrics().get("pseudo_labels", {}).items():
            for text in texts:
                place = ", ".join(filter(None, [cell.row, cell.condition]))
                found.setdefault(f"{task}: {text}", {})[place] = None
    return [f"{'; '.join(places)}: {text}" for text, places in found.items()]


def _curve_figure(done: Sequence[Cell]) -> Any:
    """A panel for each task, its development metric over steps; then cosines of two gradients.

    Of the first fold, condition and seed.
    """
    from matplotlib.figure import Figure

    shown = [c for c in done if (c.condition, c.fold, c.seed) == _first_place(done)]
    logs = [Run(cell.folder).log() for cell in shown]
    tasks = {name: entry for cell in shown for name, entry in cell.recipe.tasks.items()}
    panels = {}
    for task, entry in tasks.items():
        metric = build.build_task(task, entry).primary
        panels[f"dev/{task}/{metric}"] = f"{task}: {full_name(metric)}, %", 100.0
    for name in dict.fromkeys(name for log in logs for _, name, _ in log):
        if name.startswith("cosine/"):
            _, one, other = name.split("/")
            panels[name] = f"gradients of {one} and {other}: cosine", 1.0
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.0 * across, 3.4 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (wanted, (title, scale)) in zip(axes, panels.items(), strict=False):
        for index, (cell, log) in enumerate(zip(shown, logs, strict=True)):
            points = [(step, value) for step, name, value in log if name == wanted]
            if points:  # a row keeps its colour where it lacks a task
                steps, values = zip(*points, strict=True)
                line = {"color": f"C{index}", "linestyle": "-" if index < 10 else "--"}
                axis.plot(steps, [scale * v for v in values], label=cell.row, linewidth=1.3, **line)
        dress(axis, title, "step")
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    if lines:
        figure.legend(
            [*lines.values()],
            [*lines],
            loc="outside lower center",
            ncols=4,
            fontsize=7.5,
            frameon=False,
        )
    return figure


def _first_place(done: Sequence[Cell]) -> tuple[str, int, int]:
    return done[0].condition, done[0].fold, done[0].seed


def _layer_figures(done: Sequence[Cell]) -> Iterator[tuple[str, Any]]:
    """Layer use of every row of the first condition, fold and seed that has more than one layer."""
    for cell in done:
        if (cell.condition, cell.fold, cell.seed) != _first_place(done):
            continue
        if Run(cell.folder).moved(build.identities(cell.recipe)):
            continue  # it no longer has what it reads
        with trusted_code():  # the recipe is the sweep's
            uses = run_layer_use(cell.folder)
        if any(len(use.weights or use.ablation or ()) > 1 for use in uses):
            yield cell.row, layer_figure(uses)
