"""Which differences between finished runs are real: a paired bootstrap for each task and metric.

Runs of one recipe that differ in nothing but their seed are one system, and so are the folds of a
sweep: folds are pooled, seeds averaged and drawn. Every other system is compared with the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechfuse import build
from speechfuse.checkpoint import Run, recipe_changes
from speechfuse.contracts import Row
from speechfuse.errors import RunError
from speechfuse.experiments.sweep import Split
from speechfuse.metrics import (
    LEAST,
    Evidence,
    full_name,
    paired_difference,
    percent,
    signed_cell,
    with_interval,
)
from speechfuse.recipe import Recipe, SplitRecipe
from speechfuse.runs import runs_below, training_of
from speechfuse.types import Metric, Table

# Columns that a system writes, and what it scores apart; others are the test set.
FOUND = {"prediction", "score", "cut", "set"}
UNDECIDED, TOO_FEW = "not told apart", "too few speakers"


@dataclass(frozen=True)
class System:
    """Runs of one recipe: by seed, a run for each fold."""

    name: str
    recipe: Recipe
    runs: Mapping[int, Sequence[Run]]

    @property
    def first_run(self) -> Run:
        return next(iter(self.runs.values()))[0]

    def tables(self, split: Split, task: str) -> list[list[Row]]:
        """For each seed what was predicted, all folds together, in a fixed order.

        Raises:
            RunError: two runs of one seed were scored on the same utterance.
        """
        found = []
        for seed, runs in self.runs.items():
            rows: list[Row] = []
            seen: dict[str, Path] = {}
            for run in runs:
                table = run.table(split, task)
                for place in map(_place, table):
                    if (there := seen.setdefault(place, run.folder)) != run.folder:
                        raise RunError(
                            f"{there} and {run.folder} have one recipe, seed {seed} and both "
                            f"{place} in {split} {task}; leave one of them out"
                        )
                rows += table
            found.append(sorted(rows, key=_place))
        return found


@dataclass(frozen=True)
class Difference:
    """One metric of one task: the first system, another one, and the other minus the first."""

    task: str
    metric: str
    system: str
    first: Metric
    value: Metric
    difference: Metric
    higher_is_better: bool
    seeds: tuple[int, int] | None  # with a gain, and of how many; none with other seeds

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """better or worse where the interval is without zero."""
        if self.difference.speakers < LEAST:
            return TOO_FEW
        if not (self.difference.above(0) or self.difference.below(0)):
            return UNDECIDED
        return "better" if (self.difference.value > 0) is self.higher_is_better else "worse"


def find_systems(folders: Sequence[Path]) -> list[System]:
    """Runs in or below these folders, those of one recipe together, in the order given.

    Raises:
        RunError: a folder without a run, a run that is not finished or given twice, seeds with
            other folds, or fewer than two systems.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        for path in runs_below(folder):
            if not Run(path).finished:
                raise RunError(
                    f"{path} is not finished; leave it out, or train it first: {training_of(path)}"
                )
            runs.setdefault(path.resolve(), Run(path))
    groups: list[tuple[Recipe, list[Run]]] = []
    for run in runs.values():
        recipe = _without_place(run.recipe())
        for known, members in groups:
            if not recipe_changes(known, recipe) and run.upstreams() == members[0].upstreams():
                members.append(run)
                break
        else:
            groups.append((recipe, [run]))
    if len(groups) < 2:
        raise RunError(
            f"{len(runs)} run{'s' * (len(runs) > 1)} of one recipe, which are one system; name "
            "runs of another recipe to compare them with"
        )
    names = _names([[run.folder for run in members] for _, members in groups])
    return [
        System(name, recipe, _by_seed(members))
        for name, (recipe, members) in zip(names, groups, strict=True)
    ]


def _without_place(recipe: Recipe) -> Recipe:
    """Without its seed and without who is in which fold, of whom the number still counts."""
    tasks = {}
    for name, task in recipe.tasks.items():
        counts = {
            field: tuple(map(str, range(len(value))))
            for field, value in task.split.model_dump().items()
            if field.endswith("_speakers") and value is not None
        }
        split = SplitRecipe.model_validate(task.split.model_dump() | counts)
        tasks[name] = task.model_copy(update={"split": split})
    return recipe.model_copy(update={"seed": 0, "tasks": tasks})


def _by_seed(runs: Sequence[Run]) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(run.recipe().seed, []).append(run)
    found = dict(sorted(found.items()))
    first, *others = found
    for seed in others:
        if len(found[seed]) != len(found[first]):
            folders = ", ".join(str(run.folder) for run in runs[:6])
            raise RunError(
                f"runs of one recipe with {len(found[first])} of seed {first} and "
                f"{len(found[seed])} of seed {seed} ({folders}); give the same folds of each seed"
            )
    return found


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """The folder that holds a system's runs and no other's, else its first run."""
    found = []
    for group in groups:
        others = [path for other in groups if other is not group for path in other]
        parents = [group[0], *group[0].parents]
        common = next(p for p in parents if all(path.is_relative_to(p) for path in group))
        shared = any(path.is_relative_to(common) for path in others)
        found.append(group[0] if shared else common)
    parts = [path.parts for path in found]
    same = 0
    while all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    return [str(Path(*p[same:])) for p in parts]


def compare(systems: Sequence[System], split: Split = "test") -> list[Difference]:
    """Every system against the first, in the tasks and metrics that both have.

    Raises:
        RunError: no task in common, or scored on other data.
    """
    return [one for other in systems[1:] for one in _compared(systems[0], other, split)]


def _compared(first: System, other: System, split: Split) -> Iterator[Difference]:
    shared = [name for name in first.recipe.tasks if name in other.recipe.tasks]
    if not shared:
        raise RunError(
            f"{other.name} has the tasks {', '.join(other.recipe.tasks)} and {first.name} "
            f"{', '.join(first.recipe.tasks)}; compare runs with a task of the same name"
        )
    for name in shared:
        task = build.build_task(name, first.recipe.tasks[name])
        tables = [system.tables(split, name) for system in (first, other)]
        for system, several in zip((first, other), tables, strict=True):
            for rows in several:
                _refuse_other_data(tables[0][0], rows, first.name, system.name, f"{split} {name}")
        mine, theirs = (
            _scored(system.recipe, name, several)
            for system, several in zip((first, other), tables, strict=True)
        )
        same_seeds = first.runs.keys() == other.runs.keys()
        sign = 1 if task.higher_is_better else -1
        for metric in [metric for metric in mine if metric in theirs]:
            pairs = list(zip(theirs[metric], mine[metric], strict=False))
            gains = sum(sign * (its.point() - my.point()) > 0 for its, my in pairs)
            yield Difference(
                name,
                metric,
                other.name,
                with_interval(mine[metric]),
                with_interval(theirs[metric]),
                paired_difference(theirs[metric], mine[metric]),
                task.higher_is_better,
                (gains, len(pairs)) if same_seeds else None,
            )


def _scored(recipe: Recipe, name: str, tables: Sequence[list[Row]]) -> dict[str, list[Evidence]]:
    """By metric, a piece of evidence for each seed."""
    task = build.build_task(name, recipe.tasks[name])
    found: dict[str, list[Evidence]] = {}
    for rows in tables:
        for metric, evidence in task.score(rows).items():
            found.setdefault(metric, []).append(evidence)
    return found


def _asked(rows: Sequence[Row]) -> list[Row]:
    """What a table says of the test set."""
    return [{k: v for k, v in row.items() if k not in FOUND} for row in rows]


def _refuse_other_data(
    wanted: Sequence[Row], found: Sequence[Row], first: str, other: str, what: str
) -> None:
    """Raises RunError unless both were scored on the same utterances, or trials."""
    ours, theirs = _asked(wanted), _asked(found)
    if ours == theirs:
        return
    mine, its = ({_place(row): row for row in rows} for rows in (ours, theirs))
    only, lacking = ([*its.keys() - mine.keys()], [*mine.keys() - its.keys()])
    said = [
        f"{len(names)} of {len(of)} are only in {who}, such as {min(names)}"
        for who, names, of in ((other, only, its), (first, lacking, mine))
        if names
    ]
    for place in sorted(mine.keys() & its.keys()):
        if changed := [k for k in mine[place] if mine[place][k] != its[place].get(k)]:
            one, two = (row[place].get(changed[0]) for row in (mine, its))
            said.append(f"{place} has {changed[0]} '{one}' in {first} and '{two}' in {other}")
            break
    if not said:
        said.append(f"{len(ours)} rows and {len(theirs)}")
    raise RunError(
        f"{first} and {other} were not scored on the same {what} data: {'; '.join(said)}; "
        "evaluate both on one corpus and split"
    )


def _place(row: Row) -> str:
    """What tells a row from the others."""
    return row["id"] if "id" in row else f"{row['enrolment']} {row['test']}"


def compare_tables(
    systems: Sequence[System], differences: Sequence[Difference], split: Split
) -> list[Table]:
    """For each system but the first a table with a row for each task and metric."""
    columns = ["metric", "first", "other", "difference, paired", "speakers", "seeds", "verdict"]
    tables = []
    for system in systems[1:]:
        rows = [
            [
                f"{one.task}: {full_name(one.metric)}",
                percent(one.first),
                percent(one.value),
                signed_cell(one.difference),
                str(one.difference.speakers),
                f"{one.seeds[0]} of {one.seeds[1]}" if one.seeds else "-",
                one.verdict,
            ]
            for one in differences
            if one.system == system.name
        ]
        title = f"First: {systems[0].name}; other: {system.name}\n"
        title += f"{split} split, % with 95 % interval over speakers and seeds; seeds: with a gain"
        tables.append((title, columns, rows))
    return tables


def about_systems(systems: Sequence[System]) -> list[str]:
    """One line for each system: how many runs, and in which settings it is another than the first.

    Random weights of an encoder and the like are settings, too; what changes no result is left out.
    """
    lines = []
    for system in systems:
        runs = [run for several in system.runs.values() for run in several]
        folds = len(next(iter(system.runs.values())))
        text = f"{system.name}: seed{'s' * (len(system.runs) > 1)} "
        text += ", ".join(map(str, system.runs)) + (f", {folds} folds" if folds > 1 else "")
        changed = recipe_changes(systems[0].recipe, system.recipe)
        moved = runs[0].upstreams() != systems[0].first_run.upstreams()
        if system is not systems[0]:
            names = changed or (["the weights of an upstream"] if moved else [])
            text += f"; differs in {', '.join(names[:6])}"
            text += f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(text)
    return lines


def caution(differences: Sequence[Difference]) -> str:
    """What many comparisons are worth."""
    real = sum(one.verdict in ("better", "worse") for one in differences)
    by_chance = 0.05 * len(differences)
    return (
        f"{real} of {len(differences)} differences are real: their interval is without 0. Were all "
        f"systems alike, about {by_chance:.1f} would seem so. Intervals are for other speakers, "
        "and for other seeds only where there are several."
    )


def compare_json(
    systems: Sequence[System], differences: Sequence[Difference], split: Split
) -> dict[str, Any]:
    """The same as data; fractions, not percent."""
    return {
        "split": split,
        "systems": [
            {
                "name": system.name,
                "runs": {
                    str(seed): [str(run.folder) for run in runs]
                    for seed, runs in system.runs.items()
                },
                "differs_in": recipe_changes(systems[0].recipe, system.recipe),
            }
            for system in systems
        ],
        "differences": [one.to_dict() for one in differences],
    }
