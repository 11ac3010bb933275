from pathlib import Path

import pytest

from speechfuse.errors import DataError
from speechfuse.tasks.intent import Intent
from speechfuse.types import Utterance


def asked(action, thing, place, name="a"):
    extra = {"action": action, "object": thing, "location": place}
    return Utterance(id=name, audio=Path("x"), speaker=name, extra=extra)


TRAINING = [asked("activate", "lights", "kitchen"), asked("increase", "volume", "none")]


def test_all_slots_must_be_right():
    task = Intent()
    task.fit(TRAINING)
    assert task.head_options() == {"slot_sizes": [2, 2, 2]}
    wanted = [asked("activate", "volume", "none", name) for name in "abcd"]
    assert task.targets(wanted[:1]).ids.tolist() == [[0, 1, 1]]
    fresh = Intent()
    fresh.load_state(task.state())
    rows = fresh.table(wanted, [[0, 1, 1], [0, 1, 0], [1, 1, 1], [0, 1, 1]], [])
    assert rows[1]["prediction"] == "activate | volume | kitchen"
    assert rows[1]["reference"] == "activate | volume | none"
    assert task.score(rows)["intent_accuracy"].point() == pytest.approx(2 / 4)


def test_a_value_that_is_never_trained_is_refused():
    task = Intent()
    task.fit(TRAINING)
    with pytest.raises(DataError, match=r"utterance z: object 'light' is in no .*'lights'"):
        task.check([asked("activate", "light", "none", "z")])


def test_slots_are_any_columns():
    task = Intent(slots=["action"])
    task.fit(TRAINING)
    assert task.needs == ("action",)
    assert task.head_options() == {"slot_sizes": [2]}
