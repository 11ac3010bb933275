"""Error rates, accuracies and equal error rate, each with an interval from resampled speakers.

Every metric is a function of sums over speakers (`SpeakerSums`) or of trials between speakers
(`SpeakerTrials`), so that one bootstrap serves all of them: speakers are drawn with replacement
1,000 times, the metric is computed for each draw, and the interval runs from the 2.5th to the
97.5th percentile. The draws depend on the number of speakers alone, so two systems on the same
speakers are drawn alike and their difference is paired. Of runs with several seeds, seeds are drawn
as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import float64
from numpy.typing import NDArray

from speechfuse.types import Metric

DRAWS = 1000
LEAST = 5  # speakers; an interval from fewer is far too narrow
NAMES = {
    "wer": "WER",
    "cer": "CER",
    "per": "phone error rate (PER)",
    "accuracy": "accuracy (WA)",
    "balanced_accuracy": "balanced accuracy (UA)",
    "intent_accuracy": "intent accuracy (all slots right)",
    "eer": "EER",
    "false_accepts": "false accepts",
    "false_rejects": "false rejects",
    "error": "error at the threshold",
    "actual_dcf": "actual DCF",
    "min_dcf": "min DCF",
    "r2": "R2 (variance explained)",
    "der": "DER (no collar)",
}
Values = NDArray[float64]


def full_name(metric: str) -> str:
    """A metric as it is printed; of a user's own task as the task calls it.

    >>> full_name("wer of test-other")
    'WER of test-other'
    """
    name, of, part = metric.partition(" of ")
    return NAMES.get(name, name) + of + part


def bracket(metric: Metric, form: str = ".1f", scale: float = 100) -> str:
    """An interval for reading.

    >>> bracket(Metric(0.5, 0.4, 0.65, speakers=20)), bracket(Metric(0.5, 0.5, 0.5, speakers=1))
    ('[40.0, 65.0]', '[-]')
    """
    if metric.low is None or metric.high is None:
        return "[-]"
    return f"[{scale * metric.low:{form}}, {scale * metric.high:{form}}]"


def percent(metric: Metric) -> str:
    """A value in percent, and its interval below."""
    return f"{100 * metric.value:.1f}\n{bracket(metric)}"


def signed(metric: Metric) -> str:
    """A difference in points with its interval."""
    return f"{100 * metric.value:+.1f} {bracket(metric, '+.1f')}"


def signed_cell(metric: Metric) -> str:
    """The same, the interval below."""
    return signed(metric).replace(" ", "\n", 1)


def speaker_draws(speakers: int, draws: int = DRAWS) -> Values:
    """How often each speaker is drawn, (draws, speakers); each row sums to `speakers`."""
    random = np.random.default_rng([speakers, 20120])
    return random.multinomial(speakers, [1 / speakers] * speakers, size=draws).astype(float64)


@dataclass(frozen=True)
class SpeakerSums:
    """A metric of sums: `rows` (speakers, K), and what a row of sums (..., K) is worth."""

    speakers: Sequence[str]
    rows: Values
    value: Callable[[Values], Values]

    def point(self) -> float:
        return float(self.value(self.rows.sum(0)))

    def drawn(self) -> Values:
        return self.value(speaker_draws(len(self.speakers)) @ self.rows)


@dataclass(frozen=True)
class SpeakerTrials:
    """Equal error rate of scored trials between speakers."""

    speakers: Sequence[str]
    enrolment: NDArray[np.int64]  # index into speakers, (N,)
    test: NDArray[np.int64]  # index into speakers, (N,)
    same: NDArray[np.bool_]  # (N,)
    scores: Values  # (N,), higher is more alike

    def point(self) -> float:
        return eer(self.scores, self.same)

    def drawn(self) -> Values:
        """Speakers are drawn first, then as many of their trials as there were."""
        return self._drawn

    @cached_property
    def _drawn(self) -> Values:
        return np.array([eer(self.scores, self.same, drawn) for drawn in self.weights()])

    def weights(self) -> Iterator[Values]:
        """How often each trial counts in each draw that has trials of both kinds, (N,)."""
        random = np.random.default_rng([len(self.speakers), 20121])
        for times in speaker_draws(len(self.speakers)):
            both = times[self.enrolment] * times[self.test]
            weights = np.where(self.same, times[self.enrolment], both)
            if weights[self.same].sum() == 0 or weights[~self.same].sum() == 0:
                continue
            drawn = random.poisson(weights).astype(float64)
            if drawn[self.same].sum() and drawn[~self.same].sum():
                yield drawn


Evidence = SpeakerSums | SpeakerTrials


@dataclass(frozen=True)
class GroupMean:
    """The mean of the means of groups of numbers, as benchmarks average over languages.

    Draws of speakers depend on their number alone: numbers of the same speakers are drawn alike,
    and those of other speakers apart, in another order of the draws.
    """

    groups: Sequence[Sequence[Evidence]]

    @property
    def speakers(self) -> Sequence[str]:
        return [speaker for test_set in self._test_sets() for speaker in test_set]

    def point(self) -> float:
        return float(np.mean([np.mean([one.point() for one in group]) for group in self.groups]))

    def drawn(self) -> Values:
        rows = _drawn_alike(*self.groups)
        orders = {
            test_set: np.random.default_rng([place, 20123]).permutation(rows[0].shape[1])
            for place, test_set in enumerate(self._test_sets())
        }
        means = [
            np.mean([row[orders[tuple(one.speakers)]] for one, row in zip(*both, strict=True)], 0)
            for both in zip(self.groups, rows, strict=True)
        ]
        mean: Values = np.mean(means, axis=0)
        return mean

    def _test_sets(self) -> Sequence[tuple[str, ...]]:
        return list(dict.fromkeys(tuple(one.speakers) for group in self.groups for one in group))


Scored = Evidence | GroupMean


def with_interval(evidence: Scored | Sequence[Scored]) -> Metric:
    """The metric and its 95 % interval; several evidences are runs with other seeds, averaged.

    Of several the interval is for other seeds, too: each draw of speakers also draws as many of
    the seeds as there are. Such a mean of three has two thirds of the variance over seeds that one
    of new ones has.
    """
    several = [evidence] if isinstance(evidence, Scored) else list(evidence)
    value = float(np.mean([one.point() for one in several]))
    (rows,) = _drawn_alike(several)
    low, high = interval(_over_seeds(rows))
    return Metric(value, low, high, len(several[0].speakers))


def _drawn_alike(*systems: Sequence[Scored]) -> list[Values]:
    """Values of each system's runs in the same draws, (runs, N): as many as all of them have."""
    rows = [[one.drawn() for one in runs] for runs in systems]
    shortest = min(len(row) for runs in rows for row in runs)
    return [np.array([row[:shortest] for row in runs]) for runs in rows]


def paired_difference(ours: Sequence[Scored], theirs: Sequence[Scored]) -> Metric:
    """Ours minus theirs on the same speakers, with the interval of the difference.

    Of both the same seeds are drawn, as in `with_interval`, if both have as many.
    """
    value = float(np.mean([o.point() for o in ours]) - np.mean([t.point() for t in theirs]))
    mine, other = (_over_seeds(rows) for rows in _drawn_alike(ours, theirs))
    low, high = interval(mine - other)
    return Metric(value, low, high, len(ours[0].speakers))


def _over_seeds(rows: Values) -> Values:
    """The mean of as many seeds as there are, drawn anew in each draw: (seeds, N) to (N,)."""
    seeds, draws = rows.shape
    random = np.random.default_rng([seeds, 20122])
    times = random.multinomial(seeds, [1 / seeds] * seeds, size=draws)
    drawn: Values = (rows * times.T).sum(0) / seeds
    return drawn


def interval(values: Values) -> tuple[float, float]:
    """Of 95 % of the draws."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    speakers: Sequence[str],
    *,
    characters: bool = False,
) -> SpeakerSums:
    """Word or character error rate: edits by reference units, summed before they are divided."""
    import jiwer

    names = sorted(set(speakers))
    rows = np.zeros((len(names), 2))
    measure = jiwer.process_characters if characters else jiwer.process_words
    for reference, hypothesis, speaker in zip(references, hypotheses, speakers, strict=True):
        found = measure(reference, hypothesis)
        edits = found.substitutions + found.deletions + found.insertions
        rows[names.index(speaker)] += edits, edits - found.insertions + found.hits
    # Substitutions, deletions and hits are the reference's units.
    return SpeakerSums(names, rows, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1))


def accuracy(truth: Sequence[str], found: Sequence[str], speakers: Sequence[str]) -> SpeakerSums:
    """Plain accuracy, the weighted accuracy (WA) of emotion recognition."""
    names = sorted(set(speakers))
    rows = np.zeros((len(names), 2))
    for reference, prediction, speaker in zip(truth, found, speakers, strict=True):
        rows[names.index(speaker)] += reference == prediction, 1
    return SpeakerSums(names, rows, share_right)


def share_right(sums: Values) -> Values:
    """What sums of right answers and of answers (..., 2) are worth."""
    share: Values = sums[..., 0] / sums[..., 1]
    return share


def balanced_accuracy(
    truth: Sequence[str], found: Sequence[str], speakers: Sequence[str]
) -> SpeakerSums:
    """Mean recall of the classes that occur, the unweighted accuracy (UA)."""
    names, classes = sorted(set(speakers)), sorted(set(truth))
    rows = np.zeros((len(names), 2 * len(classes)))
    for reference, prediction, speaker in zip(truth, found, speakers, strict=True):
        row, index = rows[names.index(speaker)], classes.index(reference)
        row[index] += reference == prediction
        row[len(classes) + index] += 1

    return SpeakerSums(names, rows, mean_recall)


def mean_recall(sums: Values) -> Values:
    """What sums of right answers of each of C classes, then of answers, (..., 2 C), are worth."""
    right, total = np.split(sums, 2, axis=-1)
    recall = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
    mean: Values = recall.sum(-1) / np.maximum((total > 0).sum(-1), 1)
    return mean


def r_squared(sums: Values) -> Values:
    """Share of the variance of C targets that is explained, all targets together.

    sums: (..., 4 C), of each target the number of values, their sum, the sum of their squares and
    that of the squared errors. Zero for who predicts the mean, less for who does worse.
    """
    count, total, squares, errors = np.split(sums, 4, axis=-1)
    variance = squares - total**2 / np.maximum(count, 1)
    share: Values = 1 - errors.sum(-1) / np.maximum(variance.sum(-1), 1e-12)
    return share


def eer(scores: Values, same: NDArray[np.bool_], weights: Values | None = None) -> float:
    """Equal error rate, interpolated where misses and false alarms cross.

    scores: (N,), higher means the same speaker. weights: how often each trial counts.
    """
    _, miss, alarm = error_points(scores, same, weights)
    return equal_error(miss, alarm)


def equal_error(miss: Values, alarm: Values) -> float:
    """Where both errors of `error_points` are equal, interpolated."""
    after = int(np.argmax(alarm >= miss))
    before = max(0, after - 1)
    gap_before, gap_after = miss[before] - alarm[before], miss[after] - alarm[after]
    share = gap_before / (gap_before - gap_after) if gap_before != gap_after else 0.0
    return float(miss[before] + share * (miss[after] - miss[before]))


def error_points(
    scores: Values, same: NDArray[np.bool_], weights: Values | None = None
) -> tuple[Values, Values, Values]:
    """Different scores from the highest, (K,), and the shares of misses and of false alarms,
    (K + 1,): of who accepts none, then down to each of the scores. Arguments as of `eer`.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    target = np.where(same, weights, 0.0)[order].cumsum()
    impostor = np.where(same, 0.0, weights)[order].cumsum()
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are accepted together
    miss = np.concatenate([[1.0], 1 - target[last] / target[-1]])
    alarm = np.concatenate([[0.0], impostor[last] / impostor[-1]])
    return scores[order][last], miss, alarm


def relative_gain(fused: Values, singles: Sequence[Values], *, higher_is_better: bool) -> Values:
    """How much better a fusion is than the best of its models alone, relative to that one.

    Shih & Harwath 2025 (arXiv:2511.08389), discussion; of errors 0.1 is a tenth fewer.

    >>> float(relative_gain(np.array(3.0), [np.array(4.0), np.array(5.0)], higher_is_better=False))
    0.25
    """
    best = np.max(singles, axis=0) if higher_is_better else np.min(singles, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain: Values = (fused - best if higher_is_better else best - fused) / best
    return gain


def gain_over_best(
    ours: Sequence[Scored], singles: Sequence[Sequence[Scored]], *, higher_is_better: bool
) -> Metric | None:
    """The relative gain on the same speakers with its interval, as in `paired_difference`.

    The best is chosen anew in every draw. None if it makes no error, or has no answer right.
    """
    point, *points = (np.array([one.point() for one in s]).mean(0) for s in (ours, *singles))
    value = float(relative_gain(point, points, higher_is_better=higher_is_better))
    mine, *others = (_over_seeds(rows) for rows in _drawn_alike(ours, *singles))
    drawn = relative_gain(mine, others, higher_is_better=higher_is_better)
    if not np.isfinite(value):
        return None
    return Metric(value, *interval(drawn[np.isfinite(drawn)]), len(ours[0].speakers))
