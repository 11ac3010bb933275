"""Claims of a sweep: a row is better than others at one task, and not worse at the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from speechfuse import build
from speechfuse.experiments.sweep import Cell, Claim, Split, SweepFile, Tables
from speechfuse.metrics import full_name, paired_difference, signed
from speechfuse.types import Metric, Table

HOLDS, OPEN, FAILS = "holds", "not shown", "does not hold"


@dataclass(frozen=True)
class Compared:
    """How much better a row is than another one at a task, in shares of one: more is better."""

    task: str
    metric: str
    other: str
    gain: Metric
    seeds: tuple[int, int]  # with a gain, and of how many


def claim_tables(sweep: SweepFile, done: Sequence[Cell], split: Split = "test") -> list[Table]:
    """One table for each condition with a claim whose rows are all finished."""
    tables = Tables(done, split)
    found = []
    for condition in sweep.conditions:
        rows = []
        for name, claim in sweep.claims.items():
            wanted = [sweep.candidates(row) for row in (claim.row, *claim.over)]
            if not all(tables.has(candidates, condition) for candidates in wanted):
                continue
            gains = list(compared(sweep, tables, claim, condition))
            said = verdict(gains, claim.margin / 100)
            for gain in gains:
                rows.append([name, gain.other, *_cells(gain), said])
                name = said = ""
        if rows:
            title = f"Claims{': ' if condition else ''}{condition}"
            title += (
                "\npoints by which a row is better, paired, with 95 % interval over speakers and "
                "seeds; a claim holds if one task's interval is above 0 and no other's reaches "
                "below the margin"
            )
            columns = ["claim", "compared with", "metric", "better by", "seeds", "verdict"]
            found.append((title, columns, rows))
    return found


def compared(sweep: SweepFile, tables: Tables, claim: Claim, condition: str) -> Iterator[Compared]:
    """The primary metric of each task that two of the rows have."""
    ours = tables.of_row(sweep, claim.row, condition)
    recipe = tables.recipe(sweep.candidates(claim.row), condition)
    for other in claim.over:
        theirs = tables.of_row(sweep, other, condition)
        for name, entry in recipe.tasks.items():
            task = build.build_task(name, entry)
            key = name, task.primary
            if key not in theirs:
                continue
            gain = paired_difference(ours[key], theirs[key])
            if not task.higher_is_better:
                gain = -gain
            pairs = list(zip(ours[key], theirs[key], strict=False))
            sign = 1 if task.higher_is_better else -1
            wins = sum(sign * (mine.point() - its.point()) > 0 for mine, its in pairs)
            yield Compared(name, task.primary, other, gain, (wins, len(pairs)))


def verdict(gains: Sequence[Compared], margin: float) -> str:
    """holds, does not hold with the reason, or not shown: the intervals are too wide to tell.

    margin: by how much a task may be worse, in shares of one.
    """
    by_task: dict[str, list[Metric]] = {}
    for one in gains:
        by_task.setdefault(one.task, []).append(one.gain)
    worse = [task for task, found in by_task.items() if any(g.below(-margin) for g in found)]
    if worse:
        return f"{FAILS}: {' and '.join(worse)} worse by more than {100 * margin:g}"
    better = _all(by_task, lambda g: g.above(0))
    kept = _all(by_task, lambda g: g.above(-margin - 1e-9))
    if better and len(kept) == len(by_task):
        return f"{HOLDS}: {' and '.join(better)} better"
    if not better:
        return f"{OPEN}: no task is better than all of them"
    unsure = [task for task in by_task if task not in kept]
    return f"{OPEN}: {' and '.join(better)} better, {' and '.join(unsure)} may be worse"


def _all(by_task: Mapping[str, Sequence[Metric]], holds: Callable[[Metric], bool]) -> list[str]:
    """Tasks with which it holds for all rows that are compared."""
    return [task for task, found in by_task.items() if all(holds(gain) for gain in found)]


def _cells(one: Compared) -> list[str]:
    return [
        f"{one.task}: {full_name(one.metric)}",
        signed(one.gain),
        f"{one.seeds[0]} of {one.seeds[1]}",
    ]
