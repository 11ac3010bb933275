"""A sweep: rows of a table, each a change to one recipe, over conditions, folds and seeds.

    name: emodb
    recipe: {...}                          # what all runs share
    rows:
      log-mel: {use: [mel]}                # upstreams by name; any other section is laid over
      both, HConv: {use: [ssl, whisper], fusion: {interface: {kind: hconv}}}
      best layer: {best_of: [layer 0, layer 1]}    # chosen in each fold on its development split
    conditions: {all data: {}, two speakers: {folds: {train: 2}}}
    folds: {task: emotion, test: 1, dev: 1}        # speakers; every speaker is tested once
    seeds: [1, 2, 3]
    baseline: best layer                   # differences are paired with this row

Every cell is a run folder of its own. Finished ones are not run again, so a sweep goes on where
it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.errors import RecipeError, RunError, did_you_mean
from speechfuse.metrics import Evidence, paired_difference, with_interval
from speechfuse.recipe import Recipe, apply_override, explain, load_recipe, merged, read_yaml
from speechfuse.taskdata import find_corpus
from speechfuse.types import Metric


class Folds(BaseModel):
    """Disjoint groups of test speakers in sorted order; the next speakers are for development."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str
    test: int = Field(1, gt=0)  # speakers tested in each fold
    dev: int = Field(1, gt=0)  # speakers for development, those after the tested ones
    train: int | None = Field(None, gt=0)  # speakers trained on, those after; all others if none


class SweepFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str = ""
    recipe: dict[str, Any]
    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    conditions: dict[str, dict[str, Any]] = {"": {}}
    folds: Folds | None = None
    seeds: tuple[int, ...] = Field((7,), min_length=1)
    baseline: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    row: str
    condition: str
    fold: int
    seed: int
    recipe: Recipe
    folder: Path


@dataclass(frozen=True)
class Result:
    """One number of the table: a row under a condition."""

    row: str
    condition: str
    task: str
    metric: str
    value: Metric
    difference: Metric | None  # to the baseline row, paired
    seeds: int


Split = Literal["dev", "test"]


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepFile:
    """Read a sweep; overrides are of its own sections, like recipe.training.steps=50.

    Raises:
        RecipeError: all that is wrong with its sections.
    """
    data = read_yaml(path)
    for override in overrides:
        apply_override(data, override)
    try:
        sweep = SweepFile.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in explain(error))) from error
    names = [name for row in sweep.rows.values() for name in row.get("best_of", [])]
    for name in [*names, *([sweep.baseline] if sweep.baseline else [])]:
        if name not in sweep.rows:
            raise RecipeError(f"{path}: no row '{name}'; {did_you_mean(name, sweep.rows)}")
    return sweep


def cells(sweep: SweepFile, out: Path, rows: Sequence[str] | None = None) -> list[Cell]:
    """Every run of the sweep, in order; rows: only these.

    Raises:
        RecipeError: an unknown row, or what is wrong with a row's recipe.
    """
    for name in rows or ():
        if name not in sweep.rows:
            raise RecipeError(f"no row '{name}' in the sweep; {did_you_mean(name, sweep.rows)}")
    found: list[Cell] = []
    for condition, condition_change in sweep.conditions.items():
        folds, change = _folds(sweep, condition_change)
        for row in rows or sweep.rows:
            if "best_of" in sweep.rows[row]:
                continue
            base = _row_recipe(sweep, row, change)
            for number, fold in enumerate(folds):
                for seed in sweep.seeds:
                    recipe = _read(row, merged(merged(base, fold), {"seed": seed}))
                    names = [row, condition, f"fold{number}" if len(folds) > 1 else ""]
                    slug = "/".join(_slug(name) for name in names if name)
                    folder = out / slug / f"seed{seed}"
                    found.append(Cell(row, condition, number, seed, recipe, folder))
    return found


def summarise(sweep: SweepFile, done: Sequence[Cell], split: Split = "test") -> Iterator[Result]:
    """The table, from the predictions kept in the run folders; folds are pooled, seeds averaged."""
    tables = _Tables(done, split)
    for condition in sweep.conditions:
        for row, entry in sweep.rows.items():
            if not tables.has(_first(entry, row), condition):
                continue
            evidence = tables.evidence(entry, row, condition)
            base = None
            if sweep.baseline and sweep.baseline != row:
                other = sweep.rows[sweep.baseline]
                if tables.has(_first(other, sweep.baseline), condition):
                    base = tables.evidence(other, sweep.baseline, condition)
            for (task, metric), several in evidence.items():
                difference = None
                if base and (task, metric) in base:
                    difference = paired_difference(several, base[task, metric])
                value = with_interval(several)
                yield Result(row, condition, task, metric, value, difference, len(several))


class _Tables:
    """Predictions of finished runs, by row, condition, seed and fold."""

    def __init__(self, done: Sequence[Cell], split: Split) -> None:
        self.split = split
        self.cells: dict[tuple[str, str], dict[tuple[int, int], Cell]] = {}
        for cell in done:
            by_place = self.cells.setdefault((cell.row, cell.condition), {})
            by_place[cell.seed, cell.fold] = cell

    def has(self, row: str, condition: str) -> bool:
        return (row, condition) in self.cells

    def evidence(
        self, entry: Mapping[str, Any], row: str, condition: str
    ) -> dict[tuple[str, str], list[Evidence]]:
        """By task and metric, one piece of evidence for each seed."""
        candidates = entry.get("best_of", [row])
        options = [self.cells[name, condition] for name in candidates]
        found: dict[tuple[str, str], list[Evidence]] = {}
        first = next(iter(options[0].values()))
        for name, task_entry in first.recipe.tasks.items():
            task = build.build_task(name, task_entry)
            for seed in sorted({seed for seed, _ in options[0]}):
                rows: list[dict[str, str]] = []
                for fold in sorted({fold for _, fold in options[0]}):
                    chosen = self._best([o[seed, fold] for o in options], name, task)
                    rows += Run(chosen.folder).table(self.split, name)
                for metric, evidence in task.score(rows).items():
                    found.setdefault((name, metric), []).append(evidence)
        return found

    def _best(self, options: Sequence[Cell], name: str, task: Any) -> Cell:
        """The run with the best development score; the first of equals."""
        if len(options) == 1:
            return options[0]
        sign = 1 if task.higher_is_better else -1

        def score(cell: Cell) -> float:
            return sign * float(Run(cell.folder).metrics()["dev"][name][task.primary]["value"])

        return max(options, key=score)


def _first(entry: Mapping[str, Any], row: str) -> str:
    names = entry.get("best_of", [row])
    return str(names[0])


def _row_recipe(sweep: SweepFile, row: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """The shared recipe with a row and a condition laid over it."""
    entry = dict(sweep.rows[row])
    used = entry.pop("use", None)
    data = merged(merged(sweep.recipe, change), entry)
    if used is not None:
        known = data.get("upstreams", {})
        for name in used:
            if name not in known:
                raise RecipeError(f"row '{row}' uses '{name}'; {did_you_mean(name, known)}")
        data["upstreams"] = {name: known[name] for name in used}
    return data


def _read(row: str, data: Mapping[str, Any]) -> Recipe:
    """A recipe whose errors name the row."""
    try:
        return build.read_recipe(data)
    except RecipeError as error:
        lines = [line.removeprefix("recipe: ") for line in str(error).splitlines()]
        raise RecipeError("\n".join(f"row '{row}': {line}" for line in lines)) from error


def _folds(
    sweep: SweepFile, condition: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Changes to the recipe for each fold, and what is left of the condition."""
    change = dict(condition)
    override = change.pop("folds", {})
    if sweep.folds is None:
        return [{}], change
    plan = sweep.folds.model_copy(update=override)
    corpus = find_corpus(load_recipe(merged(sweep.recipe, {})).tasks[plan.task].corpus)
    speakers = sorted({u.speaker or u.id for u in corpus.utterances})
    if len(speakers) < plan.test + plan.dev + 1:
        raise RunError(f"{len(speakers)} speakers are too few for folds of {plan.test}+{plan.dev}")
    found = []
    for start in range(0, len(speakers) - plan.test + 1, plan.test):
        turned = speakers[start:] + speakers[:start]
        named = {
            "test_speakers": turned[: plan.test],
            "dev_speakers": turned[plan.test : plan.test + plan.dev],
        }
        rest = turned[plan.test + plan.dev :]
        named["train_speakers"] = rest[: plan.train] if plan.train else rest
        found.append({"tasks": {task: {"split": named} for task in sweep.recipe["tasks"]}})
    return found, change


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
