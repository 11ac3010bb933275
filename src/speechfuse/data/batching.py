"""Put utterances of similar duration together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from speechfuse.types import Utterance


def batch_seconds(device: torch.device) -> float:
    """Seconds of audio that a frozen encoder reads at a time.

    On a CPU as much as keeps its states in the cache, on a GPU as much as keeps it busy.
    """
    return 240.0 if device.type == "cuda" else 20.0


def by_duration(
    utterances: Iterable[Utterance], seconds: float, *, silence: float = 0.0, equal: bool = False
) -> Iterator[list[Utterance]]:
    """All utterances by falling duration, each batch at most `seconds` of padded audio.

    silence: seconds that are added to each. equal: of one duration each, so that nothing is padded.
    """
    batch: list[Utterance] = []
    for u in sorted(utterances, key=lambda u: (-(u.duration or 0.0), u.id)):
        longest = (batch[0] if batch else u).duration or 0.0
        full = (longest + silence) * (len(batch) + 1) > seconds
        if batch and (full or (equal and u.duration != longest)):
            yield batch
            batch = []
        batch.append(u)
    if batch:
        yield batch
