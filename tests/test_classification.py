"""Weights of classes: what they are for some counts, kept with a run, and refused."""

from pathlib import Path

import pytest

from speechfuse import build
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import RecipeError
from speechfuse.evaluate import evaluate_again
from speechfuse.recipe import Part
from speechfuse.tasks.classification import Classification
from speechfuse.train import train_run
from speechfuse.types import Utterance


def felt(*emotions):
    return [Utterance(str(i), Path("a.wav"), emotion=e) for i, e in enumerate(emotions)]


def fitted(utterances, **options):
    task = Classification(**options)
    task.fit(utterances)
    task.weigh(utterances)
    return task


def test_balanced_classes_count_alike_in_sum_and_an_utterance_one_on_average():
    task = fitted(felt("calm", "calm", "calm", "loud"), class_weights="balanced")
    assert task.head_options() == {"num_classes": 2, "loss_weights": pytest.approx([2 / 3, 2.0])}


def test_a_given_class_that_nobody_has_takes_nothing_from_the_others():
    labels = ["calm", "loud", "sad"]
    task = fitted(felt("calm", "loud"), class_weights="balanced", labels=labels)
    assert task.weights == [1.0, 1.0, 1.0]


def test_a_class_without_a_weight_counts_one():
    assert fitted(felt("calm", "loud"), class_weights={"loud": 3.0}).weights == [1.0, 3.0]


def test_a_class_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no emotion 'lout'.*'loud'"):
        fitted(felt("calm", "loud"), class_weights={"lout": 3.0})


def test_without_weights_what_a_run_keeps_is_as_before():
    task = fitted(felt("calm", "loud"))
    assert task.state() == {"labels": ["calm", "loud"]}
    assert task.head_options() == {"num_classes": 2}


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_a_weight_that_is_not_positive_is_refused(tone_recipe, wrong):
    tone_recipe["tasks"]["emotion"]["class_weights"] = {"loud": wrong}
    with pytest.raises(RecipeError, match=r"tasks\.emotion.*greater than 0"):
        read_recipe(tone_recipe)


def test_a_head_that_weighs_nothing_is_refused(tone_recipe):
    entry = read_recipe(tone_recipe).tasks["emotion"]
    entry = entry.model_copy(update={"head": Part(kind="statistics")})
    with pytest.raises(RecipeError, match="head 'statistics' weighs no classes"):
        build.build_head(entry, 8, {"num_classes": 2, "loss_weights": [1.0, 2.0]})


def test_a_run_keeps_its_weights_and_what_they_taught(workspace, tone_recipe):
    """With one class worth next to nothing, the other one is always named."""
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    tone_recipe["tasks"]["emotion"]["class_weights"] = {"calm": 1e-6, "loud": 5.0}
    tone_recipe["training"] |= {"steps": 40, "learning_rate": 0.01, "keep": "last"}
    metrics = train_run(read_recipe(tone_recipe), workspace / "run")
    run = Run(workspace / "run")
    assert run.tasks()["emotion"]["weights"] == [1e-6, 5.0]
    assert {row["prediction"] for row in run.table("test", "emotion")} == {"loud"}
    assert evaluate_again(workspace / "run") == metrics
