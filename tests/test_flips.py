"""Labels made wrong on purpose."""

from pathlib import Path

import pytest

from speechfuse.build import read_recipe
from speechfuse.data.flips import flip_labels
from speechfuse.errors import DataError
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks
from speechfuse.types import Utterance


def clips(count=1000, classes=("angry", "happy", "sad")):
    return [
        Utterance(f"u{i}", Path("a.wav"), emotion=classes[i % len(classes)], extra={"mood": "x"})
        for i in range(count)
    ]


def changed(before, after, label="emotion"):
    return {b.id for b, a in zip(before, after, strict=True) if b.label(label) != a.label(label)}


def test_the_share_that_is_asked_for_gets_another_class():
    before = clips()
    after = flip_labels(before, "emotion", 0.2, "here")
    assert 160 < len(changed(before, after)) < 240
    assert [u.id for u in after] == [u.id for u in before]
    pairs = {
        (b.emotion, a.emotion) for b, a in zip(before, after, strict=True) if b.emotion != a.emotion
    }
    assert len(pairs) == 6  # every class becomes every other one


def test_what_is_flipped_at_a_small_share_is_flipped_alike_at_a_large_one():
    before = clips()
    few, many = (flip_labels(before, "emotion", share, "here") for share in (0.1, 0.4))
    assert changed(before, few) < changed(before, many)
    for b, f, m in zip(before, few, many, strict=True):
        assert f.emotion in (b.emotion, m.emotion)


def test_no_share_flips_nothing_and_a_column_can_be_flipped():
    before = [u.labelled("mood", f"m{i % 2}") for i, u in enumerate(clips(40))]
    assert flip_labels(before, "mood", 0.0, "here") == before
    after = flip_labels(before, "mood", 0.9, "here")
    assert changed(before, after, "mood")
    assert not changed(before, after, "emotion")


def test_one_class_cannot_be_flipped():
    with pytest.raises(DataError, match="needs two classes or more, 'emotion' is always 'sad'"):
        flip_labels(clips(4, ["sad"]), "emotion", 0.1, "task 'emotion'")


def test_only_training_labels_are_flipped(workspace, tone_recipe):
    plain = load_tasks(read_recipe(tone_recipe))["emotion"]
    recipe = merged(tone_recipe, {"tasks": {"emotion": {"flip_labels": 0.4}}})
    wrong = load_tasks(read_recipe(recipe))["emotion"]
    assert changed(plain.splits["train"], wrong.splits["train"])
    for split in ("dev", "test"):
        assert wrong.splits[split] == plain.splits[split]
    assert plain.marks()["train"] != wrong.marks()["train"]
    assert wrong.task.state() == plain.task.state()


def test_a_text_has_no_class_to_flip(workspace, tone_recipe):
    recipe = read_recipe(merged(tone_recipe, {"tasks": {"asr": {"flip_labels": 0.1}}}))
    with pytest.raises(DataError, match="task 'asr': flip_labels is for tasks with one class"):
        load_tasks(recipe)
