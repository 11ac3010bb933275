"""What harms files and reads them sees every way to fail, and goes on after it."""

import os
import time
from functools import partial
from pathlib import Path

import pytest

from fuzzing import outcomes

pytestmark = pytest.mark.recipe  # a server of processes is begun, which takes seconds


def tried(read, unchanged=None, seconds=20.0):
    found = outcomes(abs, read, 2, seconds=seconds, megabytes=50, unchanged=unchanged)
    assert [one.number for one in found] == [0, 1]
    return [one.problem for one in found]


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (os.abort, "the process ended with -6"),
        (partial(os._exit, 0), "the process ended with 0"),
        (partial(bytearray, 200_000_000), "MB of memory"),
        (partial(bytearray, 1 << 40), "MemoryError"),
        (partial(int, "x"), "ValueError: invalid literal"),
        (partial(pow, 2, 8), ""),
    ],
)
def test_crashes_memory_and_other_errors_are_problems(read, problem):
    assert all(problem in one and bool(one) == bool(problem) for one in tried(read))


def test_what_hangs_is_ended():
    began = time.monotonic()
    assert tried(partial(time.sleep, 600), seconds=0.5) == ["not done after 0.5 s"] * 2
    assert time.monotonic() - began < 100


def test_what_writes_is_a_problem(tmp_path):
    assert tried(partial(Path.touch, tmp_path / "half"), tmp_path) == ["it wrote", ""]
