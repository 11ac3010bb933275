"""Which task has the next batch: by its share of the batches, fixed or following the losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
from torch import Tensor

from speechfuse.errors import RecipeError
from speechfuse.recipe import ByLoss, ByTemperature, Interleave, Turns

FIRST = 5  # batches of each task whose mean is its first loss; shares are equal until then
SMOOTHING = 0.1  # weight of the newest loss in the running mean of a task
LEAST = 0.1  # of the batches are shared equally, whatever the losses


class Schedule:
    """Tasks by fixed shares of the batches, the first task first; the same for the same seed."""

    known_ahead = True  # turns do not depend on what is learned

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        total = sum(shares.values())
        self.tasks, self._seed = list(shares), seed
        self._shares = [share / total for share in shares.values()]

    def shares(self) -> list[float]:
        """Of the next batch, in the order of the tasks; they sum to one."""
        return self._shares

    def turns(self) -> Iterator[str]:
        """Endless, from the start; each is drawn when it is asked for."""
        random = np.random.default_rng(self._seed)
        yield self.tasks[0]
        while True:
            yield self.tasks[random.choice(len(self.tasks), p=self.shares())]

    def saw(self, task: str, loss: Tensor) -> None:
        """Take notice of the mean loss of a batch."""

    def state_dict(self) -> dict[str, Any]:
        """What cannot be replayed from the seed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the next `turns`."""


class Even(Schedule):
    """The same shares without chance: each turn is that of the task that is furthest behind.

    Over any number of turns a task has its share of them, up to one turn for two tasks. With shares
    of 3 and 1 and `accumulate: 4` every step has three batches of one and one of the other.
    """

    def turns(self) -> Iterator[str]:
        owed = [0.0] * len(self.tasks)
        while True:
            owed = [debt + share for debt, share in zip(owed, self._shares, strict=True)]
            most = max(range(len(owed)), key=lambda i: round(owed[i], 9))  # the first of equals
            owed[most] -= 1
            yield self.tasks[most]


class LossAware(Schedule):
    """More batches for the task that has learned less, by its loss relative to its first one.

        share[i] = LEAST / N + (1 - LEAST) * r[i] ** power / sum_j r[j] ** power
        r[i] = running mean of the losses of task i / mean of its first losses

    r is the inverse training rate of GradNorm, and power its alpha (Chen et al. 2018,
    arXiv:1711.02257): there it weighs gradients, here batches. Part of the batches is shared
    equally, as a bandit explores (Graves et al. 2017, arXiv:1704.03003): to be known, a loss must
    be seen.
    """

    known_ahead = False

    def __init__(self, tasks: Mapping[str, float], seed: int, power: float) -> None:
        super().__init__(dict.fromkeys(tasks, 1.0), seed)
        self._power = power
        self._taken: list[int] = []  # every turn until now, as a place in `tasks`
        self._losses = dict.fromkeys(tasks, (0, 0.0, 0.0))  # batches, first, running mean

    def shares(self) -> list[float]:
        seen = [self._losses[task] for task in self.tasks]
        if any(batches < FIRST for batches, _, _ in seen):
            return self._shares
        pulls = [
            (max(running, 1e-9) / max(first, 1e-9)) ** self._power for _, first, running in seen
        ]
        return [LEAST / len(pulls) + (1 - LEAST) * pull / sum(pulls) for pull in pulls]

    def turns(self) -> Iterator[str]:
        random = np.random.default_rng(self._seed)
        for number in count():
            drawn = int(random.choice(len(self.tasks), p=self.shares()))
            if number == len(self._taken):  # else it was drawn before the stop, by other losses
                self._taken.append(drawn)
            yield self.tasks[self._taken[number]]

    def saw(self, task: str, loss: Tensor) -> None:
        value = float(loss)
        if not math.isfinite(value):  # a step that mixed precision skips
            return
        batches, first, running = self._losses[task]
        if batches < FIRST:
            first = running = first + (value - first) / (batches + 1)
        else:
            running += SMOOTHING * (value - running)
        self._losses[task] = (batches + 1, first, running)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": list(self._taken), "losses": dict(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._taken, self._losses = list(state["taken"]), dict(state["losses"])


def make_schedule(
    asked: Interleave, sizes: Mapping[str, float], seed: int, turns: Turns = "drawn"
) -> Schedule:
    """sizes: of the training data of each task that is trained, in batches. turns: of fixed shares.

    By size: examples-proportional mixing. With a temperature T: size ** (1 / T) (Arivazhagan et al.
    2019, arXiv:1907.05019; Raffel et al. 2020, arXiv:1910.10683).

    Raises:
        RecipeError: every task that is trained has a share of 0.
    """
    if isinstance(asked, ByLoss):
        return LossAware(sizes, seed, asked.loss_aware)
    if isinstance(asked, ByTemperature):
        shares = {task: size ** (1 / asked.temperature) for task, size in sizes.items()}
    elif asked == "proportional":
        shares = dict(sizes)
    else:
        shares = {task: asked.get(task, 1.0) for task in sizes if asked.get(task, 1.0)}
    if not shares:
        raise RecipeError(
            f"training.interleave: {', '.join(sizes)} would be trained and all their shares are 0; "
            "give one a share"
        )
    return Even(shares, seed) if turns == "even" else Schedule(shares, seed)
