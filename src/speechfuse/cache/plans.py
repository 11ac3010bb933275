"""Which utterances go into which shard and which batch, fixed before the first is computed.

A plan is written once and stays: it is the index of what is stored, and whoever makes one of its
shards, first or again after a crash, computes the same batches and writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechfuse.cache.shards import write_text
from speechfuse.errors import RunError

SHARD_BYTES = 128 << 20
SHARD_SECONDS = 1200.0  # of audio, so that a narrow encoder's shard is not hours of work


@dataclass(frozen=True)
class Shard:
    """Some layers of some utterances, by their keys; those of a batch are computed together."""

    layers: tuple[int, ...]
    batches: tuple[tuple[str, ...], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for batch in self.batches for key in batch)

    @property
    def name(self) -> str:
        """The same for the same content."""
        text = json.dumps([self.layers, self.batches])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_shards(
    layers: tuple[int, ...],
    batches: Sequence[Sequence[str]],
    seconds: Sequence[float],
    bytes_per_second: float,
) -> Iterator[Shard]:
    """Batches in a row until they fill a shard. seconds: of audio in each batch."""
    most = min(SHARD_BYTES / bytes_per_second, SHARD_SECONDS)
    held: list[tuple[str, ...]] = []
    total = 0.0
    for batch, length in zip(batches, seconds, strict=True):
        if held and total + length > most:
            yield Shard(layers, tuple(held))
            held, total = [], 0.0
        held.append(tuple(batch))
        total += length
    if held:
        yield Shard(layers, tuple(held))


def read_plans(folder: Path) -> list[Shard]:
    """The shards of all plans in a folder, whether they are made or not.

    Raises:
        RunError: a plan is damaged.
    """
    return [shard for path in sorted(folder.glob("plan-*.json")) for shard in _read(path)]


def _read(path: Path) -> list[Shard]:
    try:
        return [
            Shard(tuple(one["layers"]), tuple(map(tuple, one["batches"])))
            for one in json.loads(path.read_text())
        ]
    except FileNotFoundError:  # evicted a moment ago
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it, nothing is lost") from error


def save_plan(folder: Path, shards: Sequence[Shard]) -> None:
    """Write a plan whole or not at all.

    Raises:
        DataError: nothing can be written there.
    """
    text = json.dumps([{"layers": s.layers, "batches": s.batches} for s in shards], indent=0)
    name = f"plan-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    write_text(folder / f"{name}.json", text + "\n")
