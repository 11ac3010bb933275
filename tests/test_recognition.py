from pathlib import Path

import pytest

from speechfuse.build import build_task, read_recipe
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
