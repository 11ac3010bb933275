"""Batches of one task each, drawn by Lhotse's samplers; replayed from the seed on resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechfuse.ops import seed_for
from speechfuse.types import Batch, Utterance

MIN_FOR_BUCKETS = 64  # utterances; fewer are batched without regard to duration


@dataclass(frozen=True)
class Source:
    """The training utterances of a task, audio per batch in seconds, and share of the batches.

    batch_utterances: in each batch, whatever their duration, instead of batch_seconds.
    crop_seconds: no more than this of an utterance is read.
    """

    utterances: Sequence[Utterance]
    batch_seconds: float
    share: float
    batch_utterances: int | None = None
    crop_seconds: float | None = None

    def seconds(self, utterance: Utterance) -> float:
        """How much of an utterance is read."""
        return min(utterance.duration or 1.0, self.crop_seconds or math.inf)


def draw_batches(sources: Mapping[str, Source], seed: int) -> Iterator[tuple[str, list[Utterance]]]:
    """Endless (task, utterances); one batch, one task; the same for the same seed."""
    from lhotse.dataset import RoundRobinSampler

    known = {f"{task}|{u.id}": u for task, s in sources.items() for u in s.utterances}
    samplers = [_sampler(task, source, seed_for(seed, task)) for task, source in sources.items()]
    total = sum(source.share for source in sources.values())
    shares = [source.share / total for source in sources.values()]
    mixed: Any = (
        samplers[0]
        if len(samplers) == 1
        else RoundRobinSampler(*samplers, randomize=shares, seed=seed)
    )
    batches = iter(mixed)
    while True:
        cuts = next(batches)  # not `for`: a Lhotse sampler starts again on iter()
        names = [cut.id for cut in cuts]
        yield names[0].split("|")[0], [known[name] for name in names]


def _sampler(task: str, source: Source, seed: int) -> Any:
    from lhotse import CutSet, MonoCut
    from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler

    cuts = CutSet.from_cuts(
        MonoCut(id=f"{task}|{u.id}", start=0, duration=source.seconds(u), channel=0)
        for u in source.utterances
    )
    size = len(source.utterances)
    longest = max(source.seconds(u) for u in source.utterances)
    limit: dict[str, Any] = (
        {"max_cuts": source.batch_utterances}
        if source.batch_utterances
        else {"max_duration": max(source.batch_seconds, longest)}
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
    """A run of batches whose position is one number: Lightning saves and restores it.

    It has a length, so that nothing is fetched ahead and the position is exact.
    """

    def __init__(
        self,
        draw: Callable[[], Iterator[tuple[str, list[Utterance]]]],
        load: Callable[[str, Sequence[Utterance], int], Batch],
        batches: int,
    ) -> None:
        """draw: the batches from the start. load: tensors of a batch, which is told its number.

        batches: how many in all.
        """
        self._draw, self._load, self._batches = draw, load, batches
        self._done = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        drawn = self._draw()
        for _ in range(self._done):
            next(drawn)  # no audio and no stacks are read
        while self._done < self._batches:
            task, utterances = next(drawn)
            self._done += 1
            yield self._load(task, utterances, self._done)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._done = int(state["batches"])
