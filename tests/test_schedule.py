import itertools
from collections import Counter

import pytest
import torch

from speechfuse.data.schedule import FIRST, LEAST, Even, LossAware, Schedule, make_schedule
from speechfuse.errors import RecipeError
from speechfuse.recipe import ByLoss, ByTemperature

SIZES = {"asr": 800.0, "emotion": 50.0}


def feed(schedule, losses):
    for task, values in losses.items():
        for value in values:
            schedule.saw(task, torch.tensor(value))


def test_shares_are_those_of_the_recipe_or_equal():
    assert make_schedule({"asr": 3, "emotion": 1}, SIZES, 0).shares() == [0.75, 0.25]
    assert make_schedule({}, SIZES, 0).shares() == [0.5, 0.5]


def test_a_share_of_zero_is_no_turn():
    schedule = make_schedule({"asr": 0, "emotion": 2}, SIZES, 0)
    assert schedule.tasks == ["emotion"]
    assert set(itertools.islice(schedule.turns(), 50)) == {"emotion"}
    with pytest.raises(RecipeError, match="asr would be trained and all their shares are 0"):
        make_schedule({"asr": 0, "emotion": 2}, {"asr": 800.0}, 0)


def test_proportional_shares_are_those_of_the_sizes():
    assert make_schedule("proportional", SIZES, 0).shares() == [800 / 850, 50 / 850]


@pytest.mark.parametrize(("temperature", "share"), [(1, 16 / 17), (2, 0.8), (4, 2 / 3), (1e9, 0.5)])
def test_a_temperature_makes_sizes_more_even(temperature, share):
    """Sizes of 16 to 1: roots of 4 and 2 to 1."""
    asked = ByTemperature(temperature=temperature)
    assert make_schedule(asked, SIZES, 0).shares()[0] == pytest.approx(share)


def test_turns_have_their_shares_and_start_again_from_the_seed():
    schedule = Schedule({"asr": 3, "emotion": 1, "verification": 1}, 1)
    turns = list(itertools.islice(schedule.turns(), 2000))
    assert turns == list(itertools.islice(schedule.turns(), 2000))
    assert turns[0] == "asr"
    counts = Counter(turns)
    assert counts["asr"] / 2000 == pytest.approx(0.6, abs=0.04)
    assert counts["emotion"] / 2000 == pytest.approx(0.2, abs=0.04)
    assert turns != list(itertools.islice(Schedule(dict(counts), 2).turns(), 2000))


@pytest.mark.parametrize(
    "shares", [{"a": 1, "b": 1}, {"a": 3, "b": 1}, {"a": 5, "b": 2}, {"a": 2, "b": 1, "c": 1}]
)
def test_even_turns_have_the_shares_in_every_stretch(shares):
    """As many turns as the shares sum to; the first task first, the same for any seed."""
    size = sum(shares.values())
    turns = list(
        itertools.islice(
            make_schedule(shares, dict.fromkeys(shares, 1.0), 0, "even").turns(), 40 * size
        )
    )
    for start in range(0, len(turns), size):
        assert Counter(turns[start : start + size]) == shares
    assert turns[0] == "a"
    assert turns == list(itertools.islice(Even(shares, 3).turns(), 40 * size))


def test_even_turns_of_uneven_shares_stay_near_them():
    shares = {"a": 0.61803, "b": 0.2, "c": 0.18197}
    counts = Counter()
    for number, task in enumerate(itertools.islice(Even(shares, 0).turns(), 5000), 1):
        counts[task] += 1
        assert all(abs(counts[task] - number * shares[task]) < 2 for task in shares)


class TestLossAware:
    def test_shares_are_equal_until_every_first_loss_is_known(self):
        schedule = make_schedule(ByLoss(loss_aware=1), SIZES, 0)
        assert schedule.shares() == [0.5, 0.5]
        feed(schedule, {"asr": [4.0] * FIRST + [1.0] * 30, "emotion": [2.0] * (FIRST - 1)})
        assert schedule.shares() == [0.5, 0.5]
        feed(schedule, {"emotion": [2.0]})
        assert schedule.shares()[0] < 0.5

    @pytest.mark.parametrize("power", [0.5, 1, 2])
    def test_shares_are_powers_of_losses_relative_to_the_first(self, power):
        """One task at a quarter of its first loss, one at all of it, whatever their scales."""
        schedule = LossAware(SIZES, 0, power)
        feed(schedule, {"asr": [80.0] * FIRST + [20.0] * 500, "emotion": [0.7] * 500})
        expected = LEAST / 2 + (1 - LEAST) * 1 / (1 + 4**power)
        assert schedule.shares() == pytest.approx([expected, 1 - expected])

    def test_a_task_that_is_learned_keeps_some_turns(self):
        schedule = LossAware(SIZES, 0, 3.0)
        feed(schedule, {"asr": [1.0] * FIRST + [0.0] * 2000, "emotion": [1.0] * 50})
        assert schedule.shares() == pytest.approx([LEAST / 2, 1 - LEAST / 2])
        feed(schedule, {"emotion": [0.0] * 2000})
        assert schedule.shares() == pytest.approx([0.5, 0.5])
        turns = Counter(itertools.islice(schedule.turns(), 1000))
        assert turns["asr"] > 400

    def test_a_loss_that_is_no_number_is_not_counted(self):
        schedule = LossAware(SIZES, 0, 1.0)
        before = schedule.state_dict()
        feed(schedule, {"asr": [float("nan"), float("inf")]})
        assert schedule.state_dict() == before

    def test_a_turn_taken_before_a_stop_is_not_drawn_again_by_later_losses(self):
        one, two = LossAware(SIZES, 5, 1.0), LossAware(SIZES, 5, 1.0)
        taken = list(itertools.islice(one.turns(), 40))
        feed(one, {"asr": [1.0] * FIRST, "emotion": [1.0] * FIRST + [0.001] * 500})
        two.load_state_dict(one.state_dict())
        turns = two.turns()
        assert list(itertools.islice(turns, 40)) == taken
        assert Counter(itertools.islice(turns, 200))["emotion"] < 40
