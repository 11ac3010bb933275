"""One speaker or two, at a threshold: found on development trials, paid for on test trials.

    dcf = (p_target * false rejects + (1 - p_target) * false accepts) / min(p_target, 1 - p_target)

Both errors cost one, and who always gives the same answer has a dcf of one or more. The least
that any threshold would have cost on the test trials is min_dcf, which nobody knows beforehand;
the threshold that was found before costs the actual one (NIST SRE; Brummer & du Preez 2006).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from speechfuse.metrics import (
    SpeakerTrials,
    Values,
    bracket,
    equal_error,
    error_points,
    full_name,
    interval,
)
from speechfuse.types import Metric

Criterion = Literal["eer", "min_dcf"]
COSTS = ("false_accepts", "false_rejects", "error", "eer", "actual_dcf", "min_dcf")


@dataclass(frozen=True, slots=True)
class Decision:
    """A threshold of a cosine, where it comes from, and what it costs on others."""

    threshold: float
    criterion: Criterion
    p_target: float  # how often two recordings are of one speaker where costs are counted
    trials: int  # of development
    speakers: int
    tested: int  # of these speakers, who are in the test trials, too
    costs: Mapping[str, Metric]  # of the test trials, see `decision_costs`

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Decision:
        """Raises ValueError, TypeError or KeyError for what `to_dict` never gave."""
        costs = {name: Metric(**kept["costs"][name]) for name in COSTS}
        numbers = [m.value for m in costs.values()]
        numbers += [kept["threshold"], kept["p_target"], kept["trials"], kept["speakers"]]
        if not np.isfinite(np.array(numbers, dtype=float)).all():
            raise ValueError("a number of a threshold is not finite")
        return cls(**{**kept, "costs": costs})

    def origin(self) -> str:
        """Where it comes from, in words."""
        how = "both errors are equal" if self.criterion == "eer" else "the DCF is least"
        again = f", of whom {self.tested} are tested too" if self.tested else ""
        return (
            f"one speaker from a cosine of {self.threshold:.3f}, where {how} on {self.trials:,} "
            f"development trials of {self.speakers} speakers{again}"
        )

    def cells(self) -> list[list[str]]:
        """Costs for reading: name, value, interval; shares in percent."""
        rows = []
        for name, metric in self.costs.items():
            share = not name.endswith("dcf")
            unit = "%" if share else f"(p_target {self.p_target:g})"
            scale, digits = (100, 1) if share else (1, 3)
            form = f".{digits}f"
            value = f"{scale * metric.value:{form}}"
            rows.append([f"{full_name(name)} {unit}", value, bracket(metric, form, scale)])
        return rows

    def expected(self) -> str:
        """What it costs, in words."""
        accepts, rejects = (100 * self.costs[name].value for name in COSTS[:2])
        return f"on test trials {accepts:.1f} % false accepts, {rejects:.1f} % false rejects"


def decide(
    development: SpeakerTrials, test: SpeakerTrials, criterion: Criterion, p_target: float
) -> Decision:
    """The threshold of some trials, and what it costs on others."""
    threshold = find_threshold(development, criterion, p_target)
    return Decision(
        threshold,
        criterion,
        p_target,
        len(development.scores),
        len(development.speakers),
        len({*development.speakers} & {*test.speakers}),
        decision_costs(test, threshold, p_target),
    )


def find_threshold(trials: SpeakerTrials, criterion: Criterion, p_target: float) -> float:
    """Where both errors are as equal as they get, or the cost is least.

    In the middle between the scores on its two sides; of several as good ones the middle one.
    """
    last, miss, alarm = error_points(trials.scores, trials.same)
    loss = abs(miss - alarm) if criterion == "eer" else dcf(miss, alarm, p_target)
    edges = np.concatenate([[last[0] + 1], last, [last[-1] - 1]])  # none and all are accepted
    between = (edges[:-1] + edges[1:]) / 2
    best = np.flatnonzero(loss <= loss.min() + 1e-12)
    return round(float(between[best[len(best) // 2]]), 6)


def decision_costs(trials: SpeakerTrials, threshold: float, p_target: float) -> dict[str, Metric]:
    """What a threshold costs beside the best that these trials allow, with intervals.

    error: the mean of both shares, beside eer. actual_dcf stands beside min_dcf.
    """

    accepted = trials.scores >= threshold

    def costs(weights: Values) -> list[float]:
        alarm = np.average(accepted[~trials.same], weights=weights[~trials.same])
        miss = 1 - np.average(accepted[trials.same], weights=weights[trials.same])
        _, misses, alarms = error_points(trials.scores, trials.same, weights)
        least = float(dcf(misses, alarms, p_target).min())
        actual = float(dcf(np.array(miss), np.array(alarm), p_target))
        equal = equal_error(misses, alarms)
        return [float(alarm), float(miss), float(miss + alarm) / 2, equal, actual, least]

    point = costs(np.ones(len(trials.scores)))
    drawn = np.array([costs(weights) for weights in trials.weights()])
    return {
        name: Metric(value, *interval(column), len(trials.speakers))
        for name, value, column in zip(COSTS, point, drawn.T, strict=True)
    }


def dcf(miss: Values, alarm: Values, p_target: float) -> Values:
    """Detection cost, one for the better of the two answers that need no hearing."""
    cost: Values = p_target * miss + (1 - p_target) * alarm
    return cost / min(p_target, 1 - p_target)
