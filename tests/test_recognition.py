from pathlib import Path

import pytest

from speechfuse.build import build_task, read_recipe
from speechfuse.errors import DataError
from speechfuse.metrics import full_name
from speechfuse.tasks.recognition import Recognition
from speechfuse.types import Utterance


def said(text):
    return Utterance(id="a", audio=Path("x"), text=text, speaker="s")


def test_without_blanks_only_characters_are_scored():
    """As ML-SUPERB scores Chinese and Japanese, whose transcripts may have blanks or not."""
    task = Recognition(select_by="cer", blanks=False)
    task.fit([said("\u4f60 \u597d"), said("\u597d\u4e0d")])
    assert task.vocabulary.symbols == ["\u4e0d", "\u4f60", "\u597d"]
    (row,) = task.table([said("\u4f60 \u597d \u597d \u4e0d")], [[2, 3, 1, 1]], [])
    assert row["reference"] == "\u4f60\u597d\u597d\u4e0d"
    assert task.score([row])["cer"].point() == pytest.approx(1 / 4)
    assert Recognition().table([said("A b")], [[]], [])[0]["reference"] == "a b"


@pytest.mark.parametrize(
    ("task", "default", "other"),
    [("asr", "wer", "cer"), ("emotion", "balanced_accuracy", "accuracy")],
)
def test_a_recipe_says_which_metric_selects(tone_recipe, task, default, other):
    for overrides, metric in (([], default), ([f"tasks.{task}.select_by={other}"], other)):
        recipe = read_recipe(tone_recipe, overrides)
        assert build_task(task, recipe.tasks[task]).primary == metric


def test_sets_are_scored_together_and_apart():
    """One of two words is wrong in one set, none of three in the other; a third has no name."""

    def part_of(name, text):
        extra = {"part": name} if name else {}
        return Utterance(id=f"{name}", audio=Path("x"), text=text, speaker=f"{name}", extra=extra)

    task = Recognition(apart="part")
    members = [part_of("test-other", "a b"), part_of("test-clean", "a b c"), part_of("", "b")]
    task.fit(members)
    task.check(members)
    answers = [task.vocabulary.encode(text) for text in ("a c", "a b c", "c")]
    rows = task.table(members, answers, [])
    found = {name: one.point() for name, one in task.score(rows).items()}
    assert found.pop("wer") == pytest.approx(2 / 6)
    assert found.pop("wer of test-other") == pytest.approx(1 / 2)
    assert found.pop("wer of test-clean") == 0
    assert {*found} == {"cer", "cer of test-clean", "cer of test-other"}
    assert full_name("cer of test-clean") == "CER of test-clean"
    assert "set" not in Recognition().table(members[:1], [[]], [])[0]
    with pytest.raises(DataError, match="none of 3 utterances has 'prt'; name a column"):
        Recognition(apart="prt").check(members)
