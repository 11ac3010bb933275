import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from speechfuse.data.stream import Source, Stream, draw_batches
from speechfuse.types import Batch, Utterance


def sources(sizes={"asr": 100, "emotion": 9}, shares={"asr": 3.0, "emotion": 1.0}):  # noqa: B006
    return {
        name: Source(
            [Utterance(id=f"u{i}", audio=Path("x"), duration=1 + i % 7) for i in range(size)],
            batch_seconds=20.0,
            share=shares[name],
        )
        for name, size in sizes.items()
    }


def names(batches):
    return [(task, [u.id for u in members]) for task, members in batches]


def test_one_batch_has_one_task_in_the_given_shares():
    drawn = list(itertools.islice(draw_batches(sources(), seed=1), 400))
    counts = Counter(task for task, _ in drawn)
    assert counts["asr"] / 400 == pytest.approx(0.75, abs=0.08)
    assert all(sum(u.duration for u in members) <= 21 for _, members in drawn)
    seen = {u.id for task, members in drawn if task == "asr" for u in members}
    assert len(seen) == 100  # nothing is left out


def test_the_same_seed_gives_the_same_batches():
    one, two, other = (names(itertools.islice(draw_batches(sources(), s), 50)) for s in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("size", [100, 9])
def test_a_batch_may_hold_a_number_of_utterances(size):
    (source,) = sources({"asr": size}).values()
    drawn = draw_batches({"asr": replace(source, batch_utterances=4)}, seed=1)
    assert {len(members) for _, members in itertools.islice(drawn, 60)} == {4}


def test_cropped_utterances_take_less_room():
    (source,) = sources({"asr": 100}).values()
    drawn = draw_batches({"asr": replace(source, crop_seconds=1.0)}, seed=1)
    assert {len(members) for _, members in itertools.islice(drawn, 60)} == {20}


def test_a_batch_knows_its_number_after_a_stop():
    told = []
    stream = Stream(
        lambda: draw_batches(sources(), 3),
        lambda task, u, n: told.append(n) or Batch(task, u, [], None),
        5,
    )
    stream.load_state_dict({"batches": 2})
    list(stream)
    assert told == [3, 4, 5]


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_a_stream_goes_on_exactly_where_it_was(stop):
    def make():
        return Stream(
            lambda: draw_batches(sources(), 3), lambda task, u, n: Batch(task, u, [], None), 20
        )

    def ids(batches):
        return [(b.task, [u.id for u in b.utterances]) for b in batches]

    whole, first = ids(make()), make()
    begun = ids(itertools.islice(first, stop))
    second = make()
    second.load_state_dict(first.state_dict())
    assert begun + ids(second) == whole
    assert len(whole) == len(first) == 20
