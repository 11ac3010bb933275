from dataclasses import asdict, replace

import numpy as np
import pytest

from speechfuse.metrics import (
    GroupMean,
    SpeakerTrials,
    accuracy,
    balanced_accuracy,
    eer,
    error_rate,
    gain_over_best,
    paired_difference,
    percent,
    relative_gain,
    signed,
    speaker_draws,
    with_interval,
)
from speechfuse.types import Metric


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


REFERENCES = ["the cat sat", "a dog", "on the mat now", "hello"]
HYPOTHESES = ["the cat sit", "a big dog", "on mat", ""]
SPEAKERS = ["a", "b", "a", "c"]


def test_error_rates_are_edits_by_reference_units():
    edits = sum(
        levenshtein(r.split(), h.split()) for r, h in zip(REFERENCES, HYPOTHESES, strict=True)
    )
    words = sum(len(r.split()) for r in REFERENCES)
    assert error_rate(REFERENCES, HYPOTHESES, SPEAKERS).point() == pytest.approx(edits / words)
    edits = sum(levenshtein(r, h) for r, h in zip(REFERENCES, HYPOTHESES, strict=True))
    found = error_rate(REFERENCES, HYPOTHESES, SPEAKERS, characters=True).point()
    assert found == pytest.approx(edits / sum(map(len, REFERENCES)))


def test_balanced_accuracy_is_the_mean_recall_of_classes_that_occur():
    truth, found = list("aaabbc"), list("aabbdc")
    speakers = list("111222")
    assert accuracy(truth, found, speakers).point() == pytest.approx(4 / 6)
    expected = (2 / 3 + 1 / 2 + 1) / 3
    assert balanced_accuracy(truth, found, speakers).point() == pytest.approx(expected)


class TestEER:
    def test_separated_scores_have_none(self):
        assert eer(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == 0.0
        assert eer(np.array([0.9, 0.8, 0.1]), np.array([False, False, True])) == 1.0

    def test_equal_scores_are_a_coin(self):
        assert eer(np.zeros(6), np.array([True, False] * 3)) == pytest.approx(0.5)

    def test_a_case_made_by_hand(self):
        """Targets 4, 3, 1; impostors 2, 0, 0, 0: accepting from 2 on misses 1/3, alarms 1/4."""
        scores = np.array([4.0, 3, 1, 2, 0, 0, 0])
        same = np.array([True] * 3 + [False] * 4)
        # From (miss 1/3, alarm 0) to (1/3, 1/4) to (0, 1/4): they cross at 1/4 on the last step.
        assert eer(scores, same) == pytest.approx(1 / 4)

    def test_crossing_is_interpolated(self):
        """Between (1/2, 0) and, all equal scores accepted together, (0, 1/2)."""
        assert eer(np.array([2.0, 1, 1, 0]), np.array([True, True, False, False])) == 0.25

    def test_weights_count_like_copies(self):
        random = np.random.default_rng(0)
        scores, same = random.normal(size=40), random.random(40) < 0.4
        times = random.integers(0, 4, 40)
        copied = eer(np.repeat(scores, times), np.repeat(same, times))
        assert eer(scores, same, times.astype(float)) == pytest.approx(copied)


class TestIntervals:
    def test_draws_keep_the_number_of_speakers(self):
        draws = speaker_draws(7)
        assert draws.shape == (1000, 7)
        assert (draws.sum(1) == 7).all()
        assert np.array_equal(draws, speaker_draws(7))

    def test_the_interval_holds_the_value_and_grows_with_spread(self):
        random = np.random.default_rng(1)
        speakers = [f"s{i}" for i in range(20) for _ in range(10)]
        even = ["y" if random.random() < 0.8 else "n" for _ in speakers]
        odd = ["y" if int(s[1:]) % 5 else "n" for s in speakers]  # all or nothing by speaker
        truth = ["y"] * len(speakers)
        narrow, wide = (with_interval(accuracy(truth, f, speakers)) for f in (even, odd))
        for metric in (narrow, wide):
            assert metric.low < metric.value < metric.high
            assert metric.speakers == 20
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)

    def test_coverage_is_about_95_percent(self):
        """Of speakers with accuracies around 0.7, the interval holds the true mean as promised."""
        random = np.random.default_rng(2)
        held = 0
        for _ in range(200):
            found, speakers = [], []
            for speaker in range(25):
                chance = random.beta(7, 3)
                found += ["y" if random.random() < chance else "n" for _ in range(12)]
                speakers += [str(speaker)] * 12
            metric = with_interval(accuracy(["y"] * len(found), found, speakers))
            held += metric.low <= 0.7 <= metric.high
        assert 0.88 <= held / 200 <= 0.99

    def test_a_paired_difference_is_tighter_than_two_intervals(self):
        speakers = [f"s{i}" for i in range(15) for _ in range(8)]
        truth = ["y"] * len(speakers)
        ours = ["y" if int(s[1:]) > 3 else "n" for s in speakers]
        theirs = ["n" if i % 40 == 39 else f for i, f in enumerate(ours)]
        one, two = accuracy(truth, ours, speakers), accuracy(truth, theirs, speakers)
        difference = paired_difference([one], [two])
        assert difference.value == pytest.approx(one.point() - two.point())
        assert difference.low >= 0.0
        apart = with_interval(one)
        assert difference.high - difference.low < (apart.high - apart.low) / 2
        same = paired_difference([one], [one])
        assert (same.low, same.high) == (0.0, 0.0)

    def test_an_interval_is_for_other_seeds_too(self):
        speakers = [f"s{i}" for i in range(20) for _ in range(10)]
        truth = ["y"] * len(speakers)

        def right(wrong):
            found = ["n" if i % 10 < wrong else "y" for i in range(len(truth))]
            return accuracy(truth, found, speakers)

        ours, theirs = [right(1), right(3), right(5)], [right(4)] * 3
        alone = [with_interval(one) for one in ours]
        assert all(one.low == one.high == pytest.approx(one.value) for one in alone)
        mean, gain = with_interval(ours), paired_difference(ours, theirs)
        assert (mean.value, gain.value) == pytest.approx((0.7, 0.1))
        # One draw in 27 has the worst seed three times.
        for value, low, high in ((mean, 0.5, 0.9), (gain, -0.1, 0.3)):
            assert (value.low, value.high) == pytest.approx((low, high), abs=0.07)
        same = paired_difference(ours, ours)
        assert same.low == same.high == 0  # the same seeds of both are drawn
        assert paired_difference([ours[0]], [ours[2]]).low == pytest.approx(0.4)

    def test_of_one_speaker_there_is_none(self):
        """Drawn again and again it would seem certain; several seeds say nothing of others."""
        good, bad = (accuracy(["y"] * 4, found, ["anna"] * 4) for found in ("yyyy", "ynny"))
        for evidence in (bad, [bad, good]):
            metric = with_interval(evidence)
            assert (metric.low, metric.high, metric.speakers) == (None, None, 1)
        assert percent(with_interval(bad)) == "50.0\n[-]"
        gain = paired_difference([good], [bad])
        assert signed(gain) == "+50.0 [-]"
        assert signed(-gain) == "-50.0 [-]"
        assert not any([gain.above(0), gain.below(0), gain.above(-1), gain.below(1)])
        assert gain.ends == (0.5, 0.5)
        kept = asdict(replace(gain, low=0.5, high=0.5))  # as older runs kept it
        assert Metric(**kept) == gain
        assert asdict(gain) == {"value": 0.5, "low": None, "high": None, "speakers": 1}

    def test_it_is_above_what_all_of_it_is_above(self):
        metric = Metric(0.5, 0.4, 0.6, 9)
        assert metric.above(0.3)
        assert not metric.above(0.4)
        assert metric.below(0.7)
        assert not metric.below(0.6)
        assert (-metric).below(-0.3)

    def test_trials_are_drawn_by_speaker(self):
        random = np.random.default_rng(3)
        enrolment, test = random.integers(0, 10, 400), random.integers(0, 10, 400)
        same = enrolment == test
        scores = same + random.normal(size=400)
        trials = SpeakerTrials([str(i) for i in range(10)], enrolment, test, same, scores)
        metric = with_interval(trials)
        assert metric.low < metric.value < metric.high
        assert metric.value == pytest.approx(eer(scores, same))


def right_of(language, right):
    """Of 40 speakers with 10 answers each, as many of them right as named."""
    speakers = [f"{language}{i}" for i in range(40) for _ in range(10)]
    order = np.random.default_rng(right).permutation(len(speakers)) < right
    return accuracy(["y"] * len(speakers), ["y" if one else "n" for one in order], speakers)


class TestGroupMean:
    def test_a_group_counts_once(self):
        eng = [right_of("eng", right) for right in (100, 200, 300)]
        found = with_interval([GroupMean([eng, [right_of("rus", 40)]])])
        assert found.value == pytest.approx((200 / 400 + 40 / 400) / 2)
        assert found.speakers == 80
        assert found.low < found.value < found.high

    def test_numbers_of_the_same_speakers_are_drawn_alike_and_of_others_apart(self):
        """Their draws depend on the number of speakers alone, which is that of both languages."""
        one, other = right_of("eng", 200), replace(right_of("eng", 200))
        moved = replace(other, speakers=[f"rus{i}" for i in range(40)])

        def width(*groups):
            found = with_interval([GroupMean(groups)])
            return found.high - found.low

        alone = width([one])
        assert alone > 0
        assert width([one], [other]) == pytest.approx(alone)
        assert width([one, other]) == pytest.approx(alone)
        assert width([one], [moved]) == pytest.approx(alone / np.sqrt(2), rel=0.1)

    def test_differences_are_paired(self):
        ours = GroupMean([[right_of("eng", 200)], [right_of("rus", 100)]])
        same = GroupMean([[right_of("eng", 200)], [right_of("rus", 100)]])
        difference = paired_difference([ours], [same])
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fused", "singles", "published"),
    [  # EER of Table I: Whisper with data2vec, data2vec with WavLM; weighted sum, HConv, CHConv
        (3.96, (4.64, 4.87), 14.74),
        (2.90, (3.30, 4.20), 12.36),
        (3.03, (3.30, 4.20), 8.35),
        (3.56, (4.87, 3.52), -1.2),
        (2.91, (4.20, 2.79), -4.17),
        (3.06, (4.20, 2.79), -9.49),
    ],
)
def test_relative_gains_are_those_of_the_paper_up_to_rounding(fused, singles, published):
    found = 100 * relative_gain(fused, singles, higher_is_better=False)
    assert found == pytest.approx(published, abs=0.25)


def test_a_gain_of_a_score_is_over_the_highest():
    assert relative_gain(0.6, [0.4, 0.5], higher_is_better=True) == pytest.approx(0.2)


def test_a_gain_has_an_interval_of_draws_in_which_the_best_is_chosen_anew():
    fused, low, high = (right_of("eng", right) for right in (300, 150, 240))
    found = gain_over_best([fused, low], [[low, low], [high, high]], higher_is_better=True)
    assert found.value == pytest.approx((225 - 240) / 240)
    assert found.low < found.value < found.high
    assert found.speakers == 40
    best = gain_over_best([high], [[low], [high]], higher_is_better=True)
    assert (best.value, best.low, best.high) == (0, 0, 0)
    none = right_of("eng", 0)
    assert gain_over_best([high], [[none]], higher_is_better=True) is None
