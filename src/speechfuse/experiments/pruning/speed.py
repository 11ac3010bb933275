"""How fast the encoders of two recipes are, on the same clips in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from speechfuse import build
from speechfuse.clips import read_batch
from speechfuse.data.batching import batch_seconds, by_duration
from speechfuse.measure import best_device, median_ratio, seconds_in_turns, setting
from speechfuse.ops import moved
from speechfuse.recipe import Recipe
from speechfuse.types import Utterance

SECONDS = 60.0  # of audio in one turn


def encoder_speeds(
    before: Recipe, after: Recipe, utterances: Sequence[Utterance], repeats: int
) -> dict[str, Any]:
    """Seconds of audio that all encoders of each take in a second, and how many times as fast."""
    clips, total = [], 0.0
    for utterance in utterances:
        if total >= SECONDS:
            break
        clips.append(utterance)
        total += utterance.duration or 0.0
    calls = {"before": _over(before, clips), "after": _over(after, clips)}
    taken = seconds_in_turns(calls, repeats)
    return {
        **{name: total / median(times) for name, times in taken.items()},
        "times": median_ratio(taken["before"], taken["after"]),
        "how": f"{total:.0f} s of speech on {best_device().type}, {setting(repeats)} in turns",
    }


def _over(recipe: Recipe, clips: Sequence[Utterance]) -> Callable[[], None]:
    """All encoders of a recipe over the clips, in batches as extraction makes them."""
    device = best_device()
    work = []
    for name in recipe.upstreams:
        upstream = build.build_upstream(recipe, name)
        upstream.load()
        upstream.to(device)
        batches = by_duration(clips, batch_seconds(device), silence=upstream.plan.silence)
        work.append((upstream, [moved(read_batch(b, upstream), device) for b in batches]))

    @torch.no_grad()
    def run() -> None:
        for upstream, waves in work:
            for wav in waves:
                _, layers = upstream.stream(wav)
                for _ in layers:
                    pass

    return run
