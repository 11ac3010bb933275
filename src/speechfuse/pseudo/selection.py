"""Which answers of a teacher become labels: wanted classes, sure ones, as many of each."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from speechfuse.errors import DataError, did_you_mean
from speechfuse.pseudo.answers import Answer

Balance = int | Literal["equal", "none"]
UNSURE, OVER = "below the threshold", "over the cap"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer comes to."""

    label: str  # a wanted class, or one of the teacher's
    confidence: float
    why_not: str | None = None  # it is no label


def targets_of(
    classes: Sequence[str],
    wanted: Sequence[str] | None,
    mapping: Mapping[str, str],
    usual: Sequence[str],
) -> dict[str, str]:
    """Wanted class by class of the teacher; those it has besides are dropped.

    Names that differ by case only are the same. wanted: the usual ones, as the mapping renames
    them, if none are asked for.

    Raises:
        DataError: a wanted class that no class of the teacher stands for, or a mapping of or to
            something else.
    """
    names = [mapping.get(name, name) for name in usual] if wanted is None else wanted
    by_case = {name.casefold(): name for name in names}
    for mine, theirs in mapping.items():
        if mine not in classes:
            hint = did_you_mean(mine, classes)
            raise DataError(f"--map {mine}={theirs}: no class of the teacher is '{mine}'; {hint}")
        if theirs not in names:
            hint = did_you_mean(theirs, names)
            raise DataError(f"--map {mine}={theirs}: '{theirs}' is not wanted; {hint}")
    targets = {name: mapping.get(name) or by_case.get(name.casefold(), "") for name in classes}
    missing = [name for name in names if name not in targets.values()]
    if missing:
        free = [name for name, target in targets.items() if not target]
        near = [
            f"{found[0]}={name}"
            for name in missing
            if (found := difflib.get_close_matches(name, free, n=1, cutoff=0.4))
        ]
        raise DataError(
            f"the teacher has no {' and no '.join(missing)}: its classes are {', '.join(classes)}, "
            f"wanted are {', '.join(names)}; say which is which with "
            f"--map {','.join(near) or 'TEACHER=WANTED,...'}, or ask for other --labels"
        )
    return {name: target for name, target in targets.items() if target}


def judge(
    answer: Answer, classes: Sequence[str], targets: Mapping[str, str], threshold: float
) -> Verdict:
    """The class with the largest share; those that stand for one wanted class share it."""
    if answer.problem:
        return Verdict("", 0.0, answer.problem)
    shares: dict[tuple[bool, str], float] = defaultdict(float)
    for name, probability in zip(classes, answer.probabilities, strict=True):
        shares[name in targets, targets.get(name, name)] += probability
    (wanted, label), share = max(shares.items(), key=lambda item: item[1])
    confidence = round(min(share, 1.0), 6)
    if not wanted:
        return Verdict(label, confidence, f"class '{label}'")
    return Verdict(label, confidence, UNSURE if confidence < threshold else None)


def balanced(
    verdicts: Sequence[Verdict], wanted: Sequence[str], balance: Balance, threshold: float
) -> list[Verdict]:
    """At most so many of each class, the surest; equal: as many as the rarest class has.

    Raises:
        DataError: equal, and a class has none.
    """
    members: dict[str, list[int]] = {name: [] for name in wanted}
    for index, verdict in enumerate(verdicts):
        if verdict.why_not is None:
            members[verdict.label].append(index)
    counts = {name: len(found) for name, found in members.items()}
    if balance == "equal" and not all(counts.values()):
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(
            f"as many of each class would be none: {shown} with a confidence of at least "
            f"{threshold:g}; lower --threshold, use --balance none or a number, or leave a class "
            "out of --labels"
        )
    result = list(verdicts)
    if balance == "none":
        return result
    cap = min(counts.values()) if balance == "equal" else balance
    for found in members.values():
        order = sorted(found, key=lambda index: (-verdicts[index].confidence, index))
        for index in order[cap:]:
            result[index] = replace(verdicts[index], why_not=OVER)
    return result
