"""More training utterances from those there are: at other speeds, and in noise.

Each copy is an utterance of its own whose audio is altered as it is read, and is drawn from the
utterance's id and the copy's number alone: its layers are stored and found again like any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechfuse.errors import DataError
from speechfuse.ops import seed_for
from speechfuse.recipe import AugmentRecipe, NoiseRecipe
from speechfuse.sounds import SOUNDS, sounds_in
from speechfuse.types import Alteration, Utterance


def with_copies(
    utterances: Sequence[Utterance], augment: AugmentRecipe | None, where: str
) -> list[Utterance]:
    """The utterances, and after them their copies.

    Raises:
        DataError: no noise where it is looked for.
    """
    found = list(utterances)
    if augment is None:
        return found
    for speed in augment.speeds:
        found += [_at_speed(u, speed, new=augment.speed_speakers == "new") for u in utterances]
    if augment.noise is not None:
        sources = _sources(augment.noise, where)
        for number in range(1, augment.noise.copies + 1):
            found += [_in_noise(u, augment.noise, number, sources) for u in utterances]
    return found


def _at_speed(u: Utterance, speed: float, *, new: bool) -> Utterance:
    """new: it counts as another speaker, since the voice is higher or deeper."""
    return replace(
        u,
        id=f"{u.id} speed {speed:g}",
        duration=None if u.duration is None else u.duration / speed,
        speaker=f"{u.speaker} speed {speed:g}" if new and u.speaker else u.speaker,
        alteration=Alteration(speed=speed),
    )


def _in_noise(
    u: Utterance, noise: NoiseRecipe, number: int, sources: Sequence[Path | str]
) -> Utterance:
    seed = seed_for(noise.seed, "noise", u.id, str(number))
    random = np.random.default_rng([seed, 1])
    source = sources[int(random.integers(len(sources)))]
    snr = round(float(random.uniform(*noise.snr)), 2)
    name = source.name if isinstance(source, Path) else source
    how = Alteration(noise=source, snr=snr, seed=seed)  # type: ignore[arg-type]  # by the recipe
    return replace(u, id=f"{u.id} noise {number}, {name} at {snr:g} dB", alteration=how)


def _sources(noise: NoiseRecipe, where: str) -> list[Path | str]:
    """Kinds of noise, or files in the folder that is named."""
    if noise.source in ("white", "pink"):
        return [noise.source]
    folder = Path(noise.source)
    files = sounds_in(folder)
    if not files:
        raise DataError(
            f"{where}: augment.noise.source '{noise.source}' is no folder that holds audio "
            f"({', '.join(sorted(SOUNDS))}); name one, or pink, or white"
        )
    return [*files]
