"""Batches of one task each, drawn by Lhotse's samplers; replayed from the seed on resume."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from speechfuse.data.schedule import Schedule
from speechfuse.ops import seed_for
from speechfuse.types import Batch, Utterance

MIN_FOR_BUCKETS = 64  # utterances; fewer are batched without regard to duration


@dataclass(frozen=True)
class Source:
    """The training utterances of a task, and audio per batch in seconds.

    batch_utterances: in each batch, whatever their duration, instead of batch_seconds.
    crop_seconds: no more than this of an utterance is read.
    """

    utterances: Sequence[Utterance]
    batch_seconds: float
    batch_utterances: int | None = None
    crop_seconds: float | None = None

    def seconds(self, utterance: Utterance) -> float:
        """How much of an utterance is read."""
        return min(utterance.duration or 1.0, self.crop_seconds or math.inf)

    @property
    def most_seconds(self) -> float:
        """In a batch: as asked, or the longest utterance alone."""
        return max(self.batch_seconds, *map(self.seconds, self.utterances))

    @property
    def batches(self) -> float:
        """In one pass over the utterances, about."""
        if self.batch_utterances:
            return len(self.utterances) / self.batch_utterances
        return sum(map(self.seconds, self.utterances)) / self.most_seconds


def draw_batches(
    sources: Mapping[str, Source], turns: Iterable[str], seed: int
) -> Iterator[tuple[str, list[Utterance]]]:
    """(task, utterances) for each turn of a task; the same for the same seed.

    The batches of a task do not depend on the turns of others.
    """
    known = {task: {u.id: u for u in source.utterances} for task, source in sources.items()}
    batches = {
        task: iter(_sampler(source, seed_for(seed, task))) for task, source in sources.items()
    }
    for task in turns:
        yield task, [known[task][cut.id] for cut in next(batches[task])]


def _sampler(source: Source, seed: int) -> Any:
    from lhotse import CutSet, MonoCut
    from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler

    cuts = CutSet.from_cuts(
        MonoCut(id=u.id, start=0, duration=source.seconds(u), channel=0) for u in source.utterances
    )
    size = len(source.utterances)
    limit: dict[str, Any] = (
        {"max_cuts": source.batch_utterances}
        if source.batch_utterances
        else {"max_duration": source.most_seconds}
    )
    options: dict[str, Any] = {
        **limit,
        "shuffle": True,
        "seed": seed,
        "rank": 0,
        "world_size": 1,
    }
    endless = cuts.repeat(preserve_id=True)
    if size < MIN_FOR_BUCKETS:
        return DynamicCutSampler(endless, shuffle_buffer_size=size, **options)
    return DynamicBucketingSampler(
        endless,
        num_buckets=min(10, size // 32),
        buffer_size=size,
        num_cuts_for_bins_estimate=size,
        **options,
    )


class Stream:
    """A run of batches that knows its position: Lightning saves and restores it.

    It has a length, so that Lightning fetches nothing ahead. What is laid out ahead here does not
    count as done; a schedule that follows the losses has seen that of the batch before.
    """

    def __init__(
        self,
        draw: Callable[[], Iterator[tuple[str, list[Utterance]]]],
        load: Callable[[str, Sequence[Utterance], int], Batch],
        batches: int,
        schedule: Schedule,
        *,
        before: Callable[[int], None] = lambda _: None,
        workers: int = 0,
    ) -> None:
        """draw: the batches from the start. load: tensors of a batch, which is told its number.

        batches: how many in all. schedule: whose turns the batches are. before: is told how many
        are done when the next one is asked for. workers: threads, and batches that they lay out
        ahead, if the schedule knows its turns ahead.
        """
        self._draw, self._load, self._batches, self._schedule = draw, load, batches, schedule
        self._before, self._workers = before, workers if schedule.known_ahead else 0
        self._done = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        drawn = enumerate(self._draw(), start=1)
        for _ in range(self._done):
            next(drawn)  # no audio and no stacks are read
        ahead: deque[Callable[[], Batch]] = deque()
        with ThreadPoolExecutor(self._workers) if self._workers else nullcontext() as pool:
            try:
                while self._done < self._batches:
                    self._before(self._done)
                    while len(ahead) < min(self._workers + 1, self._batches - self._done):
                        number, (task, utterances) = next(drawn)
                        load = partial(self._load, task, utterances, number)
                        ahead.append(pool.submit(load).result if pool else load)
                    self._done += 1
                    yield ahead.popleft()()
            finally:
                if pool:
                    pool.shutdown(cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._done, **self._schedule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done = int(state["batches"])
        self._schedule.load_state_dict(state)
