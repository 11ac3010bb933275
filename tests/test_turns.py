"""Turns as text and the diarization error rate, on cases made by hand."""

import numpy as np
import pytest

from speechfuse.errors import DataError
from speechfuse.metrics import with_interval
from speechfuse.turns import (
    Turn,
    diarization_error,
    diarization_error_rate,
    format_turns,
    parse_turns,
)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ("x 0 4; y 4 8", 0.0),
        ("y 0 4; x 4 8", 0.0),  # names mean nothing
        ("x 0 5; y 5 8", 1.0),  # one second given to another
        ("x 0 4; y 5 8", 1.0),  # one second missed
        ("x 0 4; y 4 8.5", 0.5),  # half a second where nobody speaks
        ("x 0 4; y 3 8", 1.0),  # one speaker too many for a second
        ("x 0 8", 4.0),  # all as one speaker
        ("", 8.0),
    ],
)
def test_errors_of_two_turns(found, wrong):
    errors, speech = diarization_error(parse_turns("a 0 4; b 4 8"), parse_turns(found))
    assert errors == pytest.approx(wrong)
    assert speech == pytest.approx(8.0)


def test_overlapping_speech_counts_for_each_speaker():
    reference = parse_turns("a 0 6; b 4 8")
    assert diarization_error(reference, reference) == pytest.approx((0.0, 10.0))
    assert diarization_error(reference, parse_turns("x 0 6; y 6 8")) == pytest.approx((2.0, 10.0))


def test_seconds_are_summed_before_they_are_divided():
    references = ["a 0 1; b 1 2", "a 0 6; b 6 8"]
    found = diarization_error_rate(references, ["x 0 2", "x 0 6; y 6 8"], ["ab", "cd"])
    assert found.point() == pytest.approx(1 / 10)
    assert np.allclose(found.rows, [[1, 2], [0, 8]])
    metric = with_interval(found)
    assert (metric.low, metric.high) == pytest.approx((0.0, 0.5))
    assert metric.speakers == 2


def test_equals_a_count_of_milliseconds():
    """Random turns, against a loop over the middle of every millisecond and both orders."""
    random = np.random.default_rng(0)
    for _ in range(20):
        sides = []
        for _ in range(2):
            starts = random.integers(0, 900, 5)
            ends = starts + random.integers(1, 200, 5)
            names = random.permutation(["a", "a", "b", "b", "b"])
            sides.append([Turn(n, s / 1e3, e / 1e3) for n, s, e in zip(names, starts, ends, strict=True)])  # fmt: skip  # noqa: E501
        counts = []
        for names in (("a", "b"), ("b", "a")):
            wrong = speech = 0
            for step in range(1200):
                time = (step + 0.5) / 1e3
                true, told = (
                    {t.speaker for t in side if t.start <= time < t.end} for side in sides
                )
                told = {dict(zip("ab", names, strict=True))[n] for n in told}
                wrong += max(len(true), len(told)) - len(true & told)
                speech += len(true)
            counts.append(wrong)
        errors, seconds = diarization_error(*sides)
        assert errors == pytest.approx(min(counts) / 1e3)
        assert seconds == pytest.approx(speech / 1e3)


def test_text_and_turns_are_the_same():
    turns = [Turn("anna maria", 0.0, 1.25), Turn("ben", 0.9, 2.4)]
    assert format_turns(turns) == "anna maria 0.000 1.250; ben 0.900 2.400"
    assert parse_turns(format_turns(turns)) == turns
    assert parse_turns(" ") == []


@pytest.mark.parametrize("text", ["anna", "anna 0 one", "anna 2 1", "anna -1 1", "anna 0 1;"])
def test_text_that_is_no_turns_is_named(text):
    with pytest.raises(DataError, match="turn '"):
        parse_turns(text)
