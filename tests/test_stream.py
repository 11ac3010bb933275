import itertools
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speechfuse.data.schedule import LossAware, Schedule
from speechfuse.data.stream import Source, Stream, draw_batches
from speechfuse.errors import DataError
from speechfuse.types import Batch, Utterance


def sources(sizes={"asr": 100, "emotion": 9}):  # noqa: B006
    return {
        name: Source(
            [Utterance(id=f"u{i}", audio=Path("x"), duration=1 + i % 7) for i in range(size)],
            batch_seconds=20.0,
        )
        for name, size in sizes.items()
    }


def schedule(seed):
    return Schedule({"asr": 3.0, "emotion": 1.0}, seed)


def drawn(seed):
    return draw_batches(sources(), schedule(seed).turns(), seed)


def names(batches):
    return [(task, [u.id for u in members]) for task, members in batches]


def test_one_batch_has_one_task_in_the_given_shares():
    batches = list(itertools.islice(drawn(1), 400))
    counts = Counter(task for task, _ in batches)
    assert counts["asr"] / 400 == pytest.approx(0.75, abs=0.08)
    assert all(sum(u.duration for u in members) <= 21 for _, members in batches)
    seen = {u.id for task, members in batches if task == "asr" for u in members}
    assert len(seen) == 100  # nothing is left out


def test_the_same_seed_gives_the_same_batches():
    one, two, other = (names(itertools.islice(drawn(s), 50)) for s in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("size", [100, 9])
def test_a_batch_may_hold_a_number_of_utterances(size):
    (source,) = sources({"asr": size}).values()
    fours = replace(source, batch_utterances=4)
    batches = draw_batches({"asr": fours}, itertools.repeat("asr", 60), seed=1)
    assert {len(members) for _, members in batches} == {4}
    assert fours.batches == size / 4


def test_cropped_utterances_take_less_room():
    (source,) = sources({"asr": 100}).values()
    cropped = replace(source, crop_seconds=1.0)
    batches = draw_batches({"asr": cropped}, itertools.repeat("asr", 60), seed=1)
    assert {len(members) for _, members in batches} == {20}
    assert cropped.batches == 5


def test_a_pass_has_as_many_batches_as_its_seconds_fill():
    (source,) = sources({"asr": 7}).values()
    assert source.batches == 28 / 20
    assert replace(source, batch_seconds=2.0).batches == 4  # the longest has 7 s


def test_the_batches_of_a_task_do_not_depend_on_the_turns_of_others():
    def of_asr(batches):
        return [members for task, members in names(batches) if task == "asr"]

    mixed = draw_batches(sources(), ["asr", "emotion", "emotion", "asr", "emotion", "asr"], 2)
    assert of_asr(mixed) == of_asr(draw_batches(sources(), ["asr"] * 3, 2))


def test_a_batch_knows_its_number_after_a_stop():
    told = []
    stream = Stream(
        lambda: drawn(3),
        lambda task, u, n: told.append(n) or Batch(task, u, [], None),
        5,
        schedule(3),
    )
    stream.load_state_dict({"batches": 2})
    list(stream)
    assert told == [3, 4, 5]


def follows_losses():
    return LossAware({"asr": 1.0, "emotion": 1.0}, 3, power=2.0)


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20, 60])
@pytest.mark.parametrize("make", [lambda: schedule(3), follows_losses])
def test_a_stream_goes_on_exactly_where_it_was(make, stop):
    """Also where turns follow losses, here of a task that learns and one that does not.

    Whatever the number of workers before the stop and after it.
    """

    def begin(workers=0):
        order = make()
        stream = Stream(
            lambda: draw_batches(sources(), order.turns(), 3),
            lambda task, u, n: Batch(task, u, [], None),
            60,
            order,
            workers=workers,
        )
        return stream, order

    def ids(stream, order, size=60):
        found = []
        for batch in itertools.islice(stream, size):
            found.append((batch.task, [u.id for u in batch.utterances]))
            loss = 1.0 if batch.task == "asr" else 0.9 ** stream.state_dict()["batches"]
            order.saw(batch.task, torch.tensor(loss))
        return found

    whole, (first, order) = ids(*begin()), begin(workers=3)
    begun = ids(first, order, stop)
    kept = json.loads(json.dumps(first.state_dict()))
    second, order = begin(workers=1)
    second.load_state_dict(kept)
    assert begun + ids(second, order) == whole
    assert len(whole) == len(first) == 60


def test_no_turn_is_taken_before_its_batch_is_asked_for():
    order = follows_losses()
    stream = Stream(
        lambda: draw_batches(sources(), order.turns(), 3),
        lambda task, u, n: Batch(task, u, [], None),
        9,
        order,
        workers=2,
    )
    for done, _ in enumerate(stream, 1):
        assert len(order.state_dict()["taken"]) == done


def test_workers_lay_out_batches_while_one_is_learned_from():
    begun = [threading.Event() for _ in range(5)]
    asked = []

    def load(task, utterances, number):
        begun[number - 1].set()
        return Batch(task, utterances, [], None)

    order = schedule(3)
    stream = Stream(
        lambda: draw_batches(sources(), order.turns(), 3),
        load,
        5,
        order,
        before=asked.append,
        workers=2,
    )
    batches = iter(stream)
    next(batches)
    assert all(one.wait(10) for one in begun[:3])  # that batch and two ahead
    assert not begun[3].is_set()
    assert stream.state_dict() == {"batches": 1}
    list(batches)
    assert asked == [0, 1, 2, 3, 4]


def test_an_error_of_a_worker_comes_with_its_batch():
    def load(task, utterances, number):
        if number == 3:
            raise DataError("a clip")
        return Batch(task, utterances, [], None)

    batches = iter(Stream(lambda: drawn(3), load, 5, schedule(3), workers=2))
    next(batches), next(batches)
    with pytest.raises(DataError, match="a clip"):
        next(batches)
