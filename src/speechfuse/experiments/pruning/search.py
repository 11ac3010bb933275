"""Look for the smallest cut that is good enough: fewer encoders first, then fewer blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from speechfuse.experiments.pruning.cuts import Cut, Encoder
from speechfuse.experiments.pruning.trial import Rule, Trial


@dataclass(frozen=True)
class Found:
    """The smallest cut that was good enough, and how it was tried."""

    cut: Cut
    chosen: Trial | None  # none if nothing can be removed


def search(
    start: Cut,
    encoders: Mapping[str, Encoder],
    rule: Rule,
    attempt: Callable[[Cut], Trial],
) -> Found:
    """Leave encoders out, the most expensive first; then halve for the lowest block to stop at.

    start: what is kept to begin with. Halving takes it that what is cut lower is not better, so
    that of an encoder of 24 blocks five cuts are tried and not 24.
    """
    found = Found(start, None)

    def good(cut: Cut) -> bool:
        nonlocal found
        trial = attempt(cut)
        if not rule.keeps(trial.losses):
            return False
        found = Found(cut, trial)
        return True

    def expensive(name: str) -> float:
        return -encoders[name].plan.macs_per_second

    for name in sorted(start.layers, key=expensive):
        if len(found.cut.layers) > 1:
            good(found.cut.without(name))
    for name in sorted(found.cut.layers, key=expensive):
        few, many = encoders[name].fewest, len(found.cut.layers[name])
        if not encoders[name].can_stop:
            continue
        while few < many:
            middle = (few + many) // 2
            if good(found.cut.lowest(name, middle)):
                many = middle
            else:
                few = middle + 1
    return found
