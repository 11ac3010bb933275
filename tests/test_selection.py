"""From a teacher's answers to labels: classes, thresholds and caps, on cases made by hand."""

import pytest

from speechfuse.errors import DataError
from speechfuse.pseudo.answers import Answer
from speechfuse.pseudo.selection import OVER, UNSURE, Verdict, balanced, judge, targets_of

NINE = ["angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "unknown"]
FOUR = ["angry", "happy", "neutral", "sad"]


class TestTargets:
    def test_wanted_classes_are_kept_and_the_others_dropped(self):
        assert targets_of(NINE, None, {}, FOUR) == {name: name for name in FOUR}

    def test_names_may_differ_by_case(self):
        assert targets_of(["SAD", "Angry"], ["angry", "sad"], {}, FOUR) == {
            "SAD": "sad",
            "Angry": "angry",
        }

    def test_several_may_stand_for_one(self):
        mapping = {"hap": "happy", "exc": "happy", "ang": "angry", "neu": "neutral"}
        found = targets_of(["neu", "hap", "exc", "ang", "sad", "fru"], None, mapping, FOUR)
        assert found == {**mapping, "sad": "sad"}

    def test_a_mapping_renames_the_usual_ones(self):
        mapping = dict(zip(FOUR, ["ang", "hap", "neu", "sad"], strict=True))
        assert targets_of(NINE, None, mapping, FOUR) == mapping

    @pytest.mark.parametrize(
        ("classes", "wanted", "mapping", "message"),
        [
            (
                ["neu", "hap", "ang", "sad"],
                None,
                {},
                r"has no angry and no happy and no neutral: its classes are neu, hap, ang, sad, "
                r"wanted are angry, happy, neutral, sad; .*--map ang=angry,hap=happy,neu=neutral,",
            ),
            (["LABEL_0"], ["sad"], {}, r"has no sad: .* --map TEACHER=WANTED,\.\.\.,"),
            (NINE, None, {"angri": "ang"}, "no class of the teacher is 'angri'; .*'angry'"),
            (NINE, FOUR, {"fearful": "sadd"}, "'sadd' is not wanted; .*'sad'"),
        ],
    )
    def test_classes_that_do_not_fit_are_listed(self, classes, wanted, mapping, message):
        with pytest.raises(DataError, match=message):
            targets_of(classes, wanted, mapping, FOUR)


class TestJudge:
    targets = {"hap": "happy", "exc": "happy", "sad": "sad"}
    classes = ["hap", "exc", "sad", "other"]

    @pytest.mark.parametrize(
        ("shares", "verdict"),
        [
            ((0.5, 0.45, 0.05, 0.0), Verdict("happy", 0.95)),  # together, neither of them alone
            ((0.5, 0.3, 0.1, 0.1), Verdict("happy", 0.8, UNSURE)),
            ((0.0, 0.1, 0.9, 0.0), Verdict("sad", 0.9)),  # at least
            ((0.3, 0.0, 0.1, 0.6), Verdict("other", 0.6, "class 'other'")),
            ((0.3, 0.4, 0.0, 0.3), Verdict("happy", 0.7, UNSURE)),
        ],
    )
    def test_the_largest_share_counts(self, shares, verdict):
        assert judge(Answer("x", shares), self.classes, self.targets, 0.9) == verdict

    def test_no_answer_is_no_label(self):
        found = judge(Answer("x", problem="unreadable: why"), self.classes, self.targets, 0.0)
        assert found.why_not == "unreadable: why"


class TestBalanced:
    def labels(self, *pairs):
        return [Verdict(label, sure) for label, sure in pairs]

    def kept(self, found):
        return [index for index, verdict in enumerate(found) if verdict.why_not is None]

    def test_as_many_of_each_as_of_the_rarest_and_the_surest(self):
        verdicts = self.labels(("a", 0.91), ("b", 0.95), ("a", 0.99), ("a", 0.97), ("b", 0.92))
        found = balanced(verdicts, ["a", "b"], "equal", 0.9)
        assert self.kept(found) == [1, 2, 3, 4]
        assert found[0] == Verdict("a", 0.91, OVER)
        assert self.kept(balanced(verdicts, ["a", "b"], 1, 0.9)) == [1, 2]
        assert self.kept(balanced(verdicts, ["a", "b"], 9, 0.9)) == [0, 1, 2, 3, 4]
        assert balanced(verdicts, ["a", "b"], "none", 0.9) == verdicts

    def test_equals_are_taken_in_order(self):
        found = balanced(self.labels(("a", 0.9), ("a", 0.9), ("b", 1.0)), ["a", "b"], "equal", 0.9)
        assert self.kept(found) == [0, 2]

    def test_a_class_without_any_is_named(self):
        verdicts = [Verdict("a", 0.95), Verdict("b", 0.5, UNSURE)]
        with pytest.raises(DataError, match=r"a 1, b 0 with a confidence of at least 0\.9; lower"):
            balanced(verdicts, ["a", "b"], "equal", 0.9)
        assert self.kept(balanced(verdicts, ["a", "b"], "none", 0.9)) == [0]
