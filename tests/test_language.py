"""A language as the one token of a text: ids, what is written and how it is scored."""

from pathlib import Path

import pytest

from speechfuse.build import read_recipe
from speechfuse.errors import DataError, RecipeError
from speechfuse.tasks.language import LanguageToken
from speechfuse.train import train_run
from speechfuse.types import Generated, Utterance


def spoken(language, name="a"):
    return Utterance(id=name, audio=Path("x"), speaker="s", language=language)


def test_a_language_is_one_token_and_the_first_that_is_written_counts():
    task = LanguageToken()
    task.fit([spoken("swe"), spoken("deu"), spoken("swe")])
    assert task.head_options() == {"num_tokens": 3, "symbols": ["deu", "swe"]}
    targets = task.targets([spoken("swe"), spoken("deu")])
    assert (targets.ids.tolist(), targets.lengths.tolist()) == ([[2], [1]], [1, 1])
    fresh = LanguageToken()
    fresh.load_state(task.state())
    given = [spoken("swe", "a"), spoken("deu", "b"), spoken("deu", "c"), spoken("deu", "d")]
    rows = fresh.table(given, [[2], [1, 2], [2, 1], []], [])
    assert [row["prediction"] for row in rows] == ["swe", "deu", "swe", ""]
    scores = task.score(rows)
    assert scores[task.primary].point() == pytest.approx(2 / 4)
    assert scores["balanced_accuracy"].point() == pytest.approx((1 + 1 / 3) / 2)
    said = [Generated([2], cut=False), Generated([], cut=True)]
    assert [row["prediction"] for row in fresh.table(given[:2], said, [])] == ["swe", ""]
    with pytest.raises(DataError, match="language 'fra' is outside the label set"):
        task.check([spoken("fra")])


@pytest.mark.parametrize("writes", [False, True])
def test_a_recipe_trains_on_it(workspace, tone_recipe, writes):
    """The tones' emotions as if they were languages; a classifier does not write."""
    head = {"kind": "ctc", "project": 16, "lstm_dim": 16, "dropout": 0.0}
    if writes:
        head = {"kind": "text"}
        tone_recipe["context"] = {"layers": 1, "dim": 16, "heads": 1}
    entry = {**tone_recipe["tasks"]["emotion"], "label": "emotion", "head": head}
    tone_recipe["tasks"] = {"language": entry}
    tone_recipe["training"]["steps"] = 2
    metrics = train_run(read_recipe(tone_recipe), workspace / "run")
    assert 0 <= metrics["test"]["language"]["accuracy"]["value"] <= 1
    with pytest.raises(RecipeError, match="'classifier' does not answer a task of kind 'language'"):
        read_recipe(tone_recipe, ["tasks.language.head={kind: classifier}"])
