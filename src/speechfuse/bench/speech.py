"""Utterances for measurements: as long as those of natural speech, their layers drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechfuse.cache.plans import make_shards, save_plan
from speechfuse.cache.shards import stored, write_shard
from speechfuse.cache.store import Store
from speechfuse.types import Utterance


def natural_durations(seconds: float, seed: int = 0) -> list[float]:
    """Of so much speech in all: log-normal about 5 s, from 1 to 15 s."""
    random = np.random.default_rng(seed)
    found: list[float] = []
    while sum(found) < seconds:
        found.append(round(float(np.clip(random.lognormal(np.log(5.0), 0.6), 1.0, 15.0)), 2))
    return found


def named_utterances(folder: Path, seconds: float) -> list[Utterance]:
    """Files that tell utterances apart, without audio."""
    made = []
    for number, duration in enumerate(natural_durations(seconds)):
        path = folder / f"{number}.wav"
        path.write_text(str(number))
        made.append(Utterance(id=str(number), audio=path, duration=duration))
    return made


def fill_at_random(store: Store, utterances: Sequence[Utterance]) -> None:
    """Shards as an extraction leaves them, without an encoder."""
    keys = store.keys(utterances)
    seconds = [utterance.duration or 0.0 for utterance in keys.values()]
    batches = [[key] for key in keys]
    planned = [*make_shards(store.layers, batches, seconds, store.bytes_for(1.0))]
    store.describe()
    save_plan(store.folder, planned)
    for shard in planned:
        tensors: dict[str, Tensor] = {}
        for key in shard.keys:
            frames = int((keys[key].duration or 0.0) * store.spec.frame_rate)
            layers = torch.randn(len(store.layers), frames, store.spec.dim)
            tensors |= {f"{key}{end}": one for end, one in stored(layers, store.dtype).items()}
        write_shard(store.path(shard), tensors, store.layers)
    store.look()
