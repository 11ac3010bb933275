"""Thresholds by hand and by search, what they cost, and how a run carries one to its users."""

import json
from itertools import pairwise

import numpy as np
import pytest

import speechfuse
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.decision import COSTS, Decision, dcf, decide, decision_costs, find_threshold
from speechfuse.errors import RecipeError, RunError
from speechfuse.evaluate import evaluate_again
from speechfuse.metrics import SpeakerTrials, with_interval
from speechfuse.predict import predict_files
from speechfuse.publish import save_pretrained
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe  # seconds in all: run by make test


def trials(scores, same, speakers=None):
    one, other = np.transpose(speakers or [(i % 4, (i + 1) % 4) for i in range(len(scores))])
    other = np.where(same, one, other)
    return SpeakerTrials("abcd", one, other, np.array(same, bool), np.array(scores, float))


def drawn(shift, seed, size=2000):
    """Cosine-like scores of 20 speakers; each has its own level."""
    random = np.random.default_rng(seed)
    one, other = random.integers(0, 20, size), random.integers(0, 20, size)
    same = random.random(size) < 0.4
    levels = random.normal(0, 0.05, 20)
    scores = shift + levels[one] + np.where(same, 0.5, 0.2) + random.normal(0, 0.12, size)
    names = [f"{seed} {i}" for i in range(20)]
    other = np.where(same, one, np.where(other == one, (one + 1) % 20, other))
    return SpeakerTrials(names, one, other, same, scores)


def test_separated_scores_are_parted_in_the_middle():
    given = trials([0.9, 0.7, 0.3, 0.1], [1, 1, 0, 0])
    for criterion in ("eer", "min_dcf"):
        assert find_threshold(given, criterion, 0.05) == pytest.approx(0.5)


def test_a_rare_target_asks_for_a_higher_threshold():
    given = trials([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1, 0.0], [1, 0, 1, 1, 0, 0, 0, 0])
    assert find_threshold(given, "min_dcf", 0.5) == pytest.approx(0.55)  # one of five accepted
    assert find_threshold(given, "min_dcf", 0.01) == pytest.approx(0.85)  # none of them


@pytest.mark.parametrize("criterion", ["eer", "min_dcf"])
def test_no_other_threshold_is_better_on_the_trials_themselves(criterion):
    given = drawn(0.0, 1, size=300)
    found = find_threshold(given, criterion, 0.1)

    def loss(threshold):
        miss = np.mean(given.scores[given.same] < threshold)
        alarm = np.mean(given.scores[~given.same] >= threshold)
        return abs(miss - alarm) if criterion == "eer" else dcf(miss, alarm, 0.1)

    between = [(a + b) / 2 for a, b in pairwise(np.sort(given.scores))]
    assert loss(found) <= min(map(loss, [*between, -9.0, 9.0])) + 1e-12


def test_who_always_says_the_same_costs_one():
    assert dcf(np.array(1.0), np.array(0.0), 0.05) == 1.0
    assert dcf(np.array(0.0), np.array(1.0), 0.95) == pytest.approx(1.0)


def test_costs_are_counted_by_hand():
    given = trials([0.9, 0.4, 0.6, 0.1, 0.0], [1, 1, 0, 0, 0])
    found = decision_costs(given, 0.5, 0.1)
    assert [*found] == [*COSTS]
    assert found["false_accepts"].value == pytest.approx(1 / 3)
    assert found["false_rejects"].value == pytest.approx(1 / 2)
    assert found["error"].value == pytest.approx(5 / 12)
    assert found["actual_dcf"].value == pytest.approx((0.1 / 2 + 0.9 / 3) / 0.1)
    assert found["min_dcf"].value == pytest.approx(0.5)  # above 0.6: one of two is rejected
    assert found["eer"].value == with_interval(given).value


def test_intervals_are_of_resampled_speakers_and_hold_the_value():
    given = drawn(0.0, 2)
    found = decision_costs(given, 0.35, 0.05)
    assert all(m.low <= m.value <= m.high and m.speakers == 20 for m in found.values())
    assert found["eer"] == with_interval(given)
    assert found["error"].high - found["error"].low > 0.01


def test_a_shift_between_development_and_test_costs_what_min_dcf_does_not_show():
    there, shifted = (decide(drawn(0.0, 3), drawn(s, 4), "eer", 0.05) for s in (0.0, 0.2))
    for name in ("eer", "min_dcf"):
        assert shifted.costs[name].value == pytest.approx(there.costs[name].value)
    assert shifted.threshold == there.threshold
    assert there.costs["error"].value == pytest.approx(there.costs["eer"].value, abs=0.02)
    assert shifted.costs["false_accepts"].value > 2 * there.costs["false_accepts"].value


def test_a_speaker_of_development_who_is_tested_is_counted():
    assert decide(drawn(0.0, 3), drawn(0.0, 4), "eer", 0.05).tested == 0
    again = decide(drawn(0.0, 3), drawn(0.0, 3), "eer", 0.05)
    assert again.tested == 20
    assert "of whom 20 are tested too" in again.origin()


def test_it_is_read_back_as_it_is_kept_and_refused_if_it_is_not_finite():
    found = decide(drawn(0.0, 3), drawn(0.1, 4), "min_dcf", 0.05)
    kept = json.loads(json.dumps(found.to_dict()))
    assert Decision.from_dict(kept) == found
    with pytest.raises(ValueError, match="not finite"):
        Decision.from_dict({**kept, "threshold": float("nan")})


class TestRun:
    @pytest.fixture
    def run(self, workspace, tone_recipe):
        entry = {**tone_recipe["tasks"]["verification"], "threshold": "min_dcf", "p_target": 0.3}
        tone_recipe["tasks"] = {"verification": entry}
        train_run(read_recipe(tone_recipe), workspace / "run")
        return workspace / "run"

    def test_its_threshold_comes_from_development_trials_alone(self, run):
        decision = Run(run).decisions()["verification"]
        rows = Run(run).table("dev", "verification")
        assert decision.trials == len(rows)
        assert (decision.speakers, decision.tested) == (2, 0)
        assert (decision.criterion, decision.p_target) == ("min_dcf", 0.3)
        scored = [(float(row["score"]), row["same"] == "1") for row in rows]
        given = trials(*zip(*scored, strict=True))
        assert find_threshold(given, "min_dcf", 0.3) == decision.threshold
        metrics = Run(run).metrics()
        assert decision.costs["eer"].value == metrics["test"]["verification"]["eer"]["value"]

    def test_two_files_are_told_apart_by_it(self, run, tiny_corpus):
        clips = [tiny_corpus.parent / f"s{i}.wav" for i in ("6-0", "6-2", "7-1")]
        model = speechfuse.load(run)
        one, *others = (answer["verification"] for answer in model(clips))
        threshold = model.decisions["verification"].threshold
        for other in others:
            found = one.compare(other)
            assert found.same == (one.similarity(other) >= threshold)
            assert f"at threshold {threshold:.3f}; on test trials" in found.text()
        assert one.to_dict()["threshold"] == threshold
        lines = list(predict_files(run, clips[:2]))
        assert lines[-1].split("\t")[4] == one.compare(others[0]).text()

    def test_a_published_folder_has_it_too(self, run, workspace):
        folder = save_pretrained(run, workspace / "hub", picture=False)
        decisions = speechfuse.load(folder).decisions
        assert decisions == Run(run).decisions()
        card = (folder / "README.md").read_text()
        assert f"verification: {decisions['verification'].origin()}. On test trials" in card

    def test_an_older_run_says_that_it_has_none_and_gets_one(self, run, tiny_corpus):
        clips = [tiny_corpus.parent / f"s{i}.wav" for i in ("6-0", "7-1")]
        metrics = json.loads((run / "metrics.json").read_text())
        older = {key: value for key, value in metrics.items() if key != "thresholds"}
        (run / "metrics.json").write_text(json.dumps(older))
        one, other = (answer["verification"] for answer in speechfuse.load(run)(clips))
        assert one.compare(other).same is None
        assert list(predict_files(run, clips))[-1].endswith("speechfuse evaluate finds one")
        assert evaluate_again(run) == metrics
        assert speechfuse.load(run).decisions

    def test_a_damaged_one_is_named(self, run):
        metrics = json.loads((run / "metrics.json").read_text())
        del metrics["thresholds"]["verification"]["costs"]["error"]
        (run / "metrics.json").write_text(json.dumps(metrics))
        with pytest.raises(RunError, match=r"metrics\.json is damaged.*speechfuse evaluate"):
            speechfuse.load(run)


def test_standardised_trials_have_a_threshold_for_the_plain_cosine(workspace, tone_recipe):
    entry = {**tone_recipe["tasks"]["verification"], "standardize": True}
    tone_recipe["tasks"] = {"verification": entry}
    train_run(read_recipe(tone_recipe), workspace / "run")
    run = Run(workspace / "run")
    rows = run.table("dev", "verification")
    plain = trials(*zip(*((float(r["cosine"]), r["same"] == "1") for r in rows), strict=True))
    assert run.decisions()["verification"].threshold == find_threshold(plain, "eer", 0.05)


def test_a_share_of_targets_is_between_none_and_all(tone_recipe):
    tone_recipe["tasks"]["verification"]["p_target"] = 1.0
    with pytest.raises(RecipeError, match=r"tasks\.verification: p_target.*less than 1"):
        read_recipe(tone_recipe)
