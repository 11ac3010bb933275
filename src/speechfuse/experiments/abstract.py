"""What the tables of a sweep show, in two to four sentences, from their numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from speechfuse.contracts import Task
from speechfuse.experiments.claims import FAILS, HOLDS, OPEN
from speechfuse.experiments.sweep import Result, SweepFile, speakers_of
from speechfuse.metrics import full_name, percent, signed
from speechfuse.types import Metric, Table

_SAID = {HOLDS: "hold", FAILS: "do not hold", OPEN: "are not shown"}
_SAID_OF_ONE = {HOLDS: "holds", FAILS: "does not hold", OPEN: "is not shown"}


def abstract(
    sweep: SweepFile,
    tasks: Mapping[str, Task],
    results: Sequence[Result],
    averaged: Sequence[Result],
    folds: int,
    claims: Sequence[Table],
    failures: Mapping[str, int],
) -> list[str]:
    """What was compared, which row is best, which claims hold, which known failures were found.

    A sentence each; of several tasks one for each of them says which row is best.

    results: of the test split, of which the primary metric of each task counts. averaged: those
    of `averages`, which say in place of the conditions which row is best. claims: tables of
    `claim_tables`. failures: how often each kind was found. Of no results nothing is said.
    """
    shown = [r for r in results if r.task in tasks and r.metric == tasks[r.task].primary]
    if not shown:
        return []
    lines = [_compared(shown, folds)]
    if len({r.row for r in shown}) > 1:
        of_tasks = []
        for name, task in tasks.items():
            mean = [r for r in averaged if (r.task, r.metric) == (name, task.primary)]
            of_tasks.append(
                _best_of(
                    sweep,
                    task,
                    mean or [r for r in shown if r.task == name],
                    by=[f"the {mean[0].condition}"] if mean else [],
                    alone=len(tasks) == 1,
                )
            )
        lines += [f"{line[:1].upper()}{line[1:]}." for line in of_tasks if line]
    if sweep.claims:
        lines.append(_claims(claims))
    if not failures:
        return [*lines, "None of the known failures was found."]
    found = _listed(f"{kind} ({count})" for kind, count in failures.items())
    return [*lines, f"Known failures that were found, each with a remedy below: {found}."]


def _compared(shown: Sequence[Result], folds: int) -> str:
    rows, conditions = ({getattr(r, name) for r in shown} for name in ("row", "condition"))
    names = dict.fromkeys(f"{full_name(r.metric)} of {r.task}" for r in shown)
    by = f"by {_listed(names)}" if len(names) == 1 else f"in {len(names)} tasks"
    seeds = max(r.seeds for r in shown)
    counted = ((len(conditions), "condition"), (folds, "fold"), (seeds, "seed"))
    over = _listed([f"{n} {noun}s" for n, noun in counted if n > 1] or ["one seed"])
    over += f" on {speakers_of(shown)} test speakers"
    if len(rows) > 1:
        return f"{len(rows)} rows were compared over {over} {by}."
    line = f"One row, '{shown[0].row}', was run over {over}, which is compared with nothing"
    if len(conditions) > 1:
        return f"{line}."
    return f"{line}: {_listed(f'{_percent(r)} {full_name(r.metric)} of {r.task}' for r in shown)}."


def _best_of(
    sweep: SweepFile, task: Task, shown: Sequence[Result], *, by: Sequence[str], alone: bool
) -> str:
    """Of one task; empty where fewer than two rows have it.

    by: more that it is judged by than the metric. alone: the metric need not be named.
    """
    found = []
    for condition in dict.fromkeys(r.condition for r in shown):
        mine = [r for r in shown if r.condition == condition]
        if len(mine) > 1:
            found.append(sorted(mine, key=lambda r: _rank(sweep, task, r)))
    if not found:
        return ""
    judged = [*([] if alone else [f"{full_name(task.primary)} of {shown[0].task}"]), *by]
    start = f"by {', '.join(judged)}, " if judged else ""
    if len(found) == 1:
        return f"{start}{_first_of(sweep, task, found[0])}"
    wins = Counter(best.row for best, *_ in found).most_common()
    gains = [gain for best, *_ in found if (gain := _gain(task, best))]
    line = f"{start}best of {len(found)} conditions is "
    line += _listed(f"'{row}' in {count}" for row, count in wins)
    if not gains:
        return line  # it is compared with none
    real = sum(gain.above(0) for gain in gains)
    return f"{line}, in {real} of {len(gains)} told apart from the row that it is compared with"


def _rank(sweep: SweepFile, task: Task, result: Result) -> tuple[float, bool]:
    """The better the less; of equals the baseline comes first."""
    sign = -1 if task.higher_is_better else 1
    return sign * result.value.value, result.row != sweep.baseline


def _first_of(sweep: SweepFile, task: Task, ranked: Sequence[Result]) -> str:
    best, second = ranked[:2]
    line = f"'{best.row}' is best with {_percent(best)}"
    if gain := _gain(task, best):
        line += f", {_told(gain, 'better')} than '{sweep.reference(best.row)}'"
    elif sweep.reference(second.row) == best.row and (gain := _gain(task, second)):
        line += f"; '{second.row}' comes next, {_told(-gain, 'worse')}"
    else:
        return line  # it is compared with none
    real = gain.above(0) or gain.below(0)
    line += f", {'' if real else 'not '}told apart from zero by the paired interval"
    if real and len(ranked) > 2:
        line += f" (which does not count that it was chosen among {len(ranked)} rows)"
    return line


def _gain(task: Task, result: Result) -> Metric | None:
    """By how much it is better than its reference, if it has one."""
    found = result.difference
    return found if found is None or task.higher_is_better else -found


def _told(points: Metric, how: str) -> str:
    return f"{signed(points)} points {how}"


def _percent(result: Result) -> str:
    value, interval = percent(result.value).split("\n")
    return f"{value} % {interval}"


def _claims(tables: Sequence[Table]) -> str:
    """A claim is counted in each condition that could be looked at."""
    said: dict[str, list[str]] = {}
    for _, _, rows in tables:
        for name, *_, verdict in rows:
            for kind in (HOLDS, FAILS, OPEN):
                if verdict.startswith(kind):
                    said.setdefault(kind, []).append(f"'{name}'")
    if not said:
        return "No claim could be looked at, as not all of its rows are finished."
    parts = []
    for kind, names in said.items():
        counted = [f"{name} ({n} times)" if n > 1 else name for name, n in Counter(names).items()]
        verb = _SAID_OF_ONE[kind] if len(names) == 1 else _SAID[kind]
        parts.append(f"{len(names)} {verb}: {_listed(counted)}")
    total = sum(map(len, said.values()))
    return f"Of {total} claim{'s' * (total > 1)} {'; '.join(parts)}."


def _listed(names: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
