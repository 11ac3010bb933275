"""Put utterances of similar duration together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import torch


def batch_seconds(device: torch.device) -> float:
    """Seconds of audio that a frozen encoder reads at a time.

    On a CPU as much as keeps its states in the cache, on a GPU as much as keeps it busy.
    """
    return 240.0 if device.type == "cuda" else 20.0


class Timed(Protocol):
    """An utterance, or a stretch of a recording."""

    @property
    def id(self) -> str: ...

    @property
    def duration(self) -> float | None: ...


Member = TypeVar("Member", bound=Timed)


def by_duration(
    utterances: Iterable[Member], seconds: float, *, silence: float = 0.0, equal: bool = False
) -> Iterator[list[Member]]:
    """All utterances by falling duration, each batch at most `seconds` of padded audio.

    silence: seconds that are added to each. equal: of one duration each, so that nothing is padded.
    """
    batch: list[Member] = []
    for u in sorted(utterances, key=lambda u: (-(u.duration or 0.0), u.id)):
        longest = (batch[0] if batch else u).duration or 0.0
        full = (longest + silence) * (len(batch) + 1) > seconds
        if batch and (full or (equal and u.duration != longest)):
            yield batch
            batch = []
        batch.append(u)
    if batch:
        yield batch
