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
    baseline: best layer                   # differences are to this row, or to `minus` of a row
    average_conditions: {sizes: [all data, two speakers]}    # of groups, each averaged first
    claims:                                # better at one task, at no other worse by the margin
      HConv helps: {row: "both, HConv", over: [log-mel, best layer], margin: 1}

Every cell is a run folder of its own. Finished ones are not run again, so a sweep goes on where
it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.data.corpus import Corpus
from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.experiments.grid import with_grid_rows
from speechfuse.metrics import (
    Evidence,
    Scored,
    gain_over_best,
    paired_difference,
    with_interval,
)
from speechfuse.recipe import Recipe, apply_override, explain, load_recipe, merged, read_yaml
from speechfuse.taskdata import find_corpus
from speechfuse.types import Metric


class Sizes(BaseModel):
    """Speakers of each fold."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    test: int = Field(1, gt=0)
    dev: int = Field(1, ge=0)


class Folds(BaseModel):
    """Disjoint groups of test speakers in sorted order; the next speakers are for development.

    With `by`, a column such as session, all speakers of one value count as one. Tasks on the same
    corpus have the same folds; one on another corpus keeps its split, or has folds of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: str
    by: str | None = None  # column of the corpus
    test: int = Field(1, gt=0)  # speakers tested in each fold
    # Speakers for development, those after; 0: as the recipe's split says.
    dev: int = Field(1, ge=0)
    train: int | None = Field(None, gt=0)  # speakers trained on, those after; all others if none
    also: dict[str, Sizes] = {}  # tasks on other corpora that turn too, from the start again
    spread: bool = False  # beside the pooled table, one of mean and deviation over the folds


class RowEntry(BaseModel):
    """A change to the recipe, section by section, or a choice among other rows."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: tuple[str, ...] | None = None  # upstreams by name; all if left out
    leave_out: tuple[str, ...] = ()  # tasks that the row cannot do; a dash in the table
    best_of: tuple[str, ...] | None = Field(None, min_length=1)  # rows that are trained
    together: bool = False  # chosen once for all tasks by the sum of their scores, or task by task
    published: dict[str, dict[str, float | dict[str, float]]] = {}  # %, by task, metric, condition
    minus: str | None = None  # the row that its differences are to, in place of the baseline
    gain_over: tuple[str, ...] = ()  # rows of its models alone; the gain is over their best
    published_average: dict[str, dict[str, float]] = {}  # %, of average_conditions

    def number(self, task: str, metric: str, condition: str) -> float | None:
        """What somebody published for this row, in percent."""
        found = self.published.get(task, {}).get(metric)
        return found.get(condition) if isinstance(found, dict) else found


Group = Annotated[tuple[str, ...], Field(min_length=1)]  # conditions


class Claim(BaseModel):
    """A row is better than others at one task, and at the rest not worse by the margin."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    row: str
    over: tuple[str, ...] = Field(min_length=1)  # each may have other tasks, as oracles of one do
    margin: float = Field(1.0, ge=0)  # points


class Condition(BaseModel):
    """A change to the recipe, section by section, and to the folds."""

    model_config = ConfigDict(extra="allow", frozen=True)
    folds: dict[str, Any] = {}


class SweepFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str = ""
    recipe: dict[str, Any]
    rows: dict[str, RowEntry] = Field(min_length=1)
    conditions: dict[str, Condition] = Field({"": Condition()}, min_length=1)
    folds: Folds | None = None
    seeds: tuple[int, ...] = Field((7,), min_length=1)
    baseline: str | None = None
    claims: dict[str, Claim] = {}
    # Groups of conditions, by name: the mean of each group, then the mean of those, are one table
    # more, as ML-SUPERB averages the runs of a language before the languages.
    average_conditions: dict[str, Group] | None = Field(None, min_length=1)

    def candidates(self, row: str) -> tuple[str, ...]:
        """The rows that are trained for this one: itself, or those that it chooses from."""
        return self.rows[row].best_of or (row,)

    def reference(self, row: str) -> str | None:
        """The row that its differences are to."""
        found = self.rows[row].minus or self.baseline
        return None if found == row else found


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
    difference: Metric | None  # to the row of reference, paired
    seeds: int
    published: float | None = None  # by others, in percent
    gain: Metric | None = None  # relative, over the best of the rows to gain over


Split = Literal["dev", "test"]


def speakers_of(results: Sequence[Result]) -> str:
    """How many speakers the numbers are of: 20, or 4 to 20."""
    counts = sorted({r.value.speakers for r in results}) or [0]
    return " to ".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]]))


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepFile:
    """Read a sweep; overrides are of its own sections, like recipe.training.steps=50.

    Raises:
        RecipeError: all that is wrong with its sections, or all names that stand for nothing.
    """
    data = read_yaml(path)
    if "upstreams" in data and "rows" not in data:
        raise RecipeError(
            f"{path}: is a recipe, of one run; use: speechfuse train {path} --out FOLDER"
        )
    try:
        data = with_grid_rows(data, path.parent)
    except RecipeError as error:
        lines = str(error).splitlines()
        raise RecipeError("\n".join(f"{path}: {line}" for line in lines)) from error
    for override in overrides:
        apply_override(data, override)
    try:
        sweep = SweepFile.model_validate(data)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(f"{path}: {line}" for line in explain(error, SweepFile))
        ) from error
    wrong = [
        *_wrong_rows(sweep),
        *_wrong_claims(sweep),
        *_wrong_average(sweep),
        *_wrong_folds(sweep),
    ]
    if wrong:
        raise RecipeError("\n".join(f"{path}: {line}" for line in wrong))
    return sweep


def _wrong_rows(sweep: SweepFile) -> Iterator[str]:
    if sweep.baseline and sweep.baseline not in sweep.rows:
        yield f"baseline: no row '{sweep.baseline}'; {did_you_mean(sweep.baseline, sweep.rows)}"
    trained = [name for name, entry in sweep.rows.items() if not entry.best_of]
    for row, entry in sweep.rows.items():
        for name in entry.best_of or ():
            if name not in sweep.rows:
                yield f"row '{row}': no row '{name}'; {did_you_mean(name, trained)}"
            elif name not in trained:
                yield f"row '{row}': '{name}' is itself a best_of; name the rows that it names"
        named = [("gain_over", name) for name in entry.gain_over]
        for option, name in [*named, *([("minus", entry.minus)] if entry.minus else [])]:
            if name not in sweep.rows:
                yield f"row '{row}': {option}: no row '{name}'; {did_you_mean(name, sweep.rows)}"
        yield from _wrong_leaving_out(sweep, row, entry)


def _wrong_claims(sweep: SweepFile) -> Iterator[str]:
    for name, claim in sweep.claims.items():
        for row in (claim.row, *claim.over):
            if row not in sweep.rows:
                yield f"claim '{name}': no row '{row}'; {did_you_mean(row, sweep.rows)}"


def _wrong_average(sweep: SweepFile) -> Iterator[str]:
    for group, names in (sweep.average_conditions or {}).items():
        for name in names:
            if name not in sweep.conditions:
                yield (
                    f"average_conditions.{group}: no condition '{name}'; "
                    f"{did_you_mean(name, sweep.conditions)}, or leave the average out with "
                    "average_conditions=null"
                )


def _wrong_leaving_out(sweep: SweepFile, row: str, entry: RowEntry) -> Iterator[str]:
    """Tasks that are not there, or that some of the rows of a choice have and others lack."""
    tasks = sweep.recipe.get("tasks")
    for name in entry.leave_out:
        if isinstance(tasks, Mapping) and name not in tasks:
            yield f"row '{row}': leave_out: no task '{name}'; {did_you_mean(name, tasks)}"
    if entry.together and not entry.best_of:
        yield f"row '{row}': together: it chooses nothing; add best_of with the rows to choose from"
    if entry.best_of and entry.leave_out:
        yield f"row '{row}': leave_out: a best_of has the tasks of its rows; put it there"
    rows = [sweep.rows[name] for name in entry.best_of or () if name in sweep.rows]
    if len({frozenset(one.leave_out) for one in rows}) > 1:
        yield f"row '{row}': best_of: its rows leave out other tasks; name rows with the same"


def _wrong_folds(sweep: SweepFile) -> Iterator[str]:
    changed = {f"condition '{name}': ": c for name, c in sweep.conditions.items() if c.folds}
    if sweep.folds is None:
        yield from (f"{where}changes folds that the sweep has not; add folds" for where in changed)
        return
    for where, condition in {"": Condition(), **changed}.items():
        try:
            task = _plan(sweep.folds, condition).task
        except ValidationError as error:
            yield from (f"{where}folds.{line}" for line in explain(error, Folds))
            continue
        tasks = sweep.recipe.get("tasks")
        # A recipe without tasks is refused where it is read.
        if isinstance(tasks, Mapping) and task not in tasks:
            yield f"{where}folds.task: no task '{task}'; {did_you_mean(task, tasks)}"


def cells(sweep: SweepFile, out: Path, rows: Sequence[str] | None = None) -> list[Cell]:
    """Every run of the sweep, in order; rows: only these, and those that they choose from.

    A row of tasks that no fold changes has one.

    Raises:
        RecipeError: an unknown row, what is wrong with a row's recipe, speakers that do not make
            folds, or two runs in one folder.
    """
    for name in rows or ():
        if name not in sweep.rows:
            raise RecipeError(f"no row '{name}' in the sweep; {did_you_mean(name, sweep.rows)}")
    trained = dict.fromkeys(name for row in rows or sweep.rows for name in sweep.candidates(row))
    found: dict[Path, Cell] = {}
    for condition, change in sweep.conditions.items():
        folds = _folds(sweep, change)
        for row in trained:
            base = _row_recipe(sweep, row, change)
            left_out = sweep.rows[row].leave_out
            turns = [
                [
                    _read(row, _without_tasks(merged(merged(base, fold), {"seed": seed}), left_out))
                    for seed in sweep.seeds
                ]
                for fold in folds
            ]
            if all(turn == turns[0] for turn in turns):
                turns = turns[:1]
            for number, turn in enumerate(turns):
                for seed, recipe in zip(sweep.seeds, turn, strict=True):
                    names = [row, condition, f"fold{number}" if len(folds) > 1 else ""]
                    slug = "/".join(_slug(name) for name in names if name)
                    folder = out / slug / f"seed{seed}"
                    cell = Cell(row, condition, number, seed, recipe, folder)
                    if folder in found:
                        raise RecipeError(
                            f"{_place(found[folder])} and {_place(cell)} would both be written "
                            f"to {folder}; rename one of them"
                        )
                    found[folder] = cell
    return list(found.values())


def summarise(sweep: SweepFile, done: Sequence[Cell], split: Split = "test") -> Iterator[Result]:
    """The table, from the predictions kept in the run folders; folds are pooled, seeds averaged."""
    tables = Tables(done, split)
    for condition in sweep.conditions:
        found = {
            row: tables.of_row(sweep, row, condition)
            for row in sweep.rows
            if tables.has(sweep.candidates(row), condition)
        }
        for row, key, result in results(sweep, tables, condition, found):
            yield replace(result, published=sweep.rows[row].number(*key, condition))


def results(
    sweep: SweepFile,
    tables: Tables,
    condition: str,
    found: Mapping[str, Mapping[tuple[str, str], Sequence[Scored]]],
) -> Iterator[tuple[str, tuple[str, str], Result]]:
    """What was found for each row and metric, beside its reference and the rows to gain over."""
    for row, by_metric in found.items():
        reference = sweep.reference(row)
        base = found.get(reference, {}) if reference else {}
        singles = [found.get(name, {}) for name in sweep.rows[row].gain_over]
        for key, several in by_metric.items():
            difference = gain = None
            if key in base:
                difference = paired_difference(several, base[key])
            task = tables.tasks[key[0]]
            if singles and key[1] == task.primary and all(key in single for single in singles):
                alone = [single[key] for single in singles]
                gain = gain_over_best(several, alone, higher_is_better=task.higher_is_better)
            value = with_interval(several)
            yield row, key, Result(row, condition, *key, value, difference, len(several), gain=gain)


class Tables:
    """Predictions of finished runs, by row, condition, seed and fold."""

    def __init__(self, done: Sequence[Cell], split: Split) -> None:
        self.split = split
        self.cells: dict[tuple[str, str], dict[tuple[int, int], Cell]] = {}
        for cell in done:
            by_place = self.cells.setdefault((cell.row, cell.condition), {})
            by_place[cell.seed, cell.fold] = cell
        entries = {name: one for cell in done for name, one in cell.recipe.tasks.items()}
        self.tasks = {name: build.build_task(name, one) for name, one in entries.items()}

    def has(self, candidates: Sequence[str], condition: str) -> bool:
        return all((row, condition) in self.cells for row in candidates)

    def recipe(self, candidates: Sequence[str], condition: str) -> Recipe:
        """Of a run; all have the same tasks."""
        return next(iter(self.cells[candidates[0], condition].values())).recipe

    def folds(self, candidates: Sequence[str], condition: str) -> list[int]:
        return sorted({fold for _, fold in self.cells[candidates[0], condition]})

    def of_row(
        self, sweep: SweepFile, row: str, condition: str, fold: int | None = None
    ) -> dict[tuple[str, str], list[Evidence]]:
        """By task and metric, one piece of evidence for each seed; of a choice the best.

        fold: of this one alone; all are pooled if none.
        """
        together = sweep.rows[row].together
        return self.evidence(sweep.candidates(row), condition, together=together, fold=fold)

    def evidence(
        self,
        candidates: Sequence[str],
        condition: str,
        *,
        together: bool = False,
        fold: int | None = None,
    ) -> dict[tuple[str, str], list[Evidence]]:
        """The same of any candidates; together: one of them for all tasks."""
        folds = self.folds(candidates, condition) if fold is None else [fold]
        options = [self.cells[name, condition] for name in candidates]
        entries = self.recipe(candidates, condition).tasks
        tasks = {name: build.build_task(name, entry) for name, entry in entries.items()}
        found: dict[tuple[str, str], list[Evidence]] = {}
        for name, task in tasks.items():
            judged = tasks if together else {name: task}
            for seed in sorted({seed for seed, _ in options[0]}):
                rows: list[dict[str, str]] = []
                for number in folds:
                    chosen = _best([o[seed, number] for o in options], judged)
                    rows += Run(chosen.folder).table(self.split, name)
                for metric, evidence in task.score(rows).items():
                    found.setdefault((name, metric), []).append(evidence)
        return found


def _best(options: Sequence[Cell], tasks: Mapping[str, Any]) -> Cell:
    """The run with the best development scores of these tasks, added up; the first of equals."""
    if len(options) == 1:
        return options[0]

    def score(cell: Cell) -> float:
        found = Run(cell.folder).metrics()["dev"]
        scores = {name: float(found[name][task.primary]["value"]) for name, task in tasks.items()}
        return sum(v if tasks[name].higher_is_better else -v for name, v in scores.items())

    return max(options, key=score)


def _place(cell: Cell) -> str:
    condition = f", condition '{cell.condition}'" if cell.condition else ""
    return f"row '{cell.row}'{condition}, seed {cell.seed}"


def _row_recipe(sweep: SweepFile, row: str, condition: Condition) -> dict[str, Any]:
    """The shared recipe with a row and a condition laid over it."""
    entry = sweep.rows[row]
    data = merged(merged(sweep.recipe, condition.model_extra or {}), entry.model_extra or {})
    if entry.use is not None:
        known = data.get("upstreams", {})
        for name in entry.use:
            if name not in known:
                raise RecipeError(f"row '{row}' uses '{name}'; {did_you_mean(name, known)}")
        data["upstreams"] = {name: known[name] for name in entry.use}
    return data


def _without_tasks(data: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A recipe without some of its tasks, and without their shares of the batches."""
    if not names:
        return dict(data)
    training = dict(data.get("training", {}))
    if isinstance(shares := training.get("interleave"), Mapping):
        training["interleave"] = {k: v for k, v in shares.items() if k not in names}
    return {
        **data,
        "tasks": {k: v for k, v in data.get("tasks", {}).items() if k not in names},
        "training": training,
    }


def _read(row: str, data: Mapping[str, Any]) -> Recipe:
    """A recipe whose errors name the row."""
    try:
        return build.read_recipe(data)
    except RecipeError as error:
        lines = [line.removeprefix("recipe: ") for line in str(error).splitlines()]
        raise RecipeError("\n".join(f"row '{row}': {line}" for line in lines)) from error


def _plan(folds: Folds, condition: Condition) -> Folds:
    return Folds.model_validate(folds.model_dump() | condition.folds)


def _folds(sweep: SweepFile, condition: Condition) -> list[dict[str, Any]]:
    """Changes to the recipe for each fold."""
    if sweep.folds is None:
        return [{}]
    plan = _plan(sweep.folds, condition)
    tasks = load_recipe(merged(sweep.recipe, {})).tasks
    folds = _splits(plan, find_corpus(tasks[plan.task].corpus))
    turns = {
        name: folds for name, entry in tasks.items() if entry.corpus == tasks[plan.task].corpus
    }
    for name, sizes in plan.also.items():
        if name not in tasks:
            raise RecipeError(f"folds.also: no task '{name}'; {did_you_mean(name, tasks)}")
        own = Folds(task=name, **sizes.model_dump())
        turns[name] = _splits(own, find_corpus(tasks[name].corpus))
    return [
        {"tasks": {name: {"split": own[number % len(own)]} for name, own in turns.items()}}
        for number in range(len(folds))
    ]


def _splits(plan: Folds, corpus: Corpus) -> list[dict[str, list[str]]]:
    """The speakers of each split, for each fold."""
    groups = _groups(plan, corpus)
    count, train = len(groups), plan.train or 1
    noun = f"{plan.by} groups" if plan.by else "speakers"
    if count < plan.test + plan.dev + train:
        raise RecipeError(
            f"folds of {plan.test} test, {plan.dev} dev and {train} train {noun} need more than "
            f"the {count} of task '{plan.task}'; make them smaller"
        )
    if count % plan.test:
        fitting = ", ".join(str(n) for n in range(1, count) if count % n == 0)
        raise RecipeError(
            f"folds.test: {count} {noun} in groups of {plan.test} leave {count % plan.test} "
            f"untested; choose one of {fitting}"
        )
    found = []
    for start in range(0, count, plan.test):
        turned = groups[start:] + groups[:start]
        test, rest = turned[: plan.test], turned[plan.test :]
        dev, rest = rest[: plan.dev], rest[plan.dev :]
        train_on = rest[: plan.train] if plan.train else rest
        found.append(
            {
                f"{split}_speakers": [speaker for group in several for speaker in group]
                for split, several in (("test", test), ("dev", dev), ("train", train_on))
            }
        )
    return found


def _groups(plan: Folds, corpus: Corpus) -> list[list[str]]:
    """Speakers that are tested together, in sorted order."""
    if plan.by is None:
        return [[speaker] for speaker in sorted({u.speaker or u.id for u in corpus.utterances})]
    by_value: dict[str, set[str]] = {}
    place: dict[str, str] = {}
    for u in corpus.utterances:
        value, speaker = u.label(plan.by), u.speaker or u.id
        if value is None:
            raise RecipeError(f"folds.by: utterance {u.id} of {corpus.name} has no '{plan.by}'")
        if place.setdefault(speaker, value) != value:
            raise RecipeError(
                f"folds.by: speaker '{speaker}' has {plan.by} '{place[speaker]}' and '{value}', so "
                "a fold would test on a speaker who is trained on; choose another column"
            )
        by_value.setdefault(value, set()).add(speaker)
    return [sorted(by_value[value]) for value in sorted(by_value)]


def _slug(name: str) -> str:
    """A folder's name: letters and digits of any script, hyphens for everything else."""
    slug = re.sub(r"[\W_]+", "-", name.lower()).strip("-")
    if not slug:
        raise RecipeError(f"'{name}' has no letter or digit to name a folder by; rename it")
    return slug
