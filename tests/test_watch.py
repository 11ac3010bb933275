"""A process that gives no sign of life is named; nobody else is."""

import queue
import time

import pytest
from torch.distributed import HashStore

from speechfuse import watch
from speechfuse.watch import Watch

NAMES = [f"training process {n} of 3" for n in (1, 2, 3)]


class Mute:
    """A store to which one process writes no sign of life."""

    def __init__(self, store):
        self.check, self.get, self.compare_set = store.check, store.get, store.compare_set

    def set(self, *_):
        pass


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(watch, "PERIOD", 0.02)
    store, told = HashStore(), queue.Queue()
    watches = [
        Watch(store, n, NAMES, lambda why, n=n: told.put((n, why)), silence=0.5) for n in range(3)
    ]
    yield watches, told
    for one in watches:
        one.end()


def test_one_that_is_silent_is_named_to_all(three):
    watches, told = three
    watches[1]._store = Mute(watches[1]._store)
    found = [told.get(timeout=10) for _ in range(3)]
    assert {number for number, _ in found} == {0, 1, 2}
    assert all(why.startswith("training process 2 of 3 has given no sign") for _, why in found)


def test_an_error_is_told_to_the_others(three):
    watches, told = three
    watches[2].tell(ValueError("a clip"))
    assert "training process 3 of 3 failed: a clip" in told.get(timeout=10)


def test_who_leaves_is_not_missed(three):
    watches, told = three
    watches[1].end()
    time.sleep(1.0)
    assert told.empty()
