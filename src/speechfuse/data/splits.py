"""Who is trained, developed and tested on: always different speakers, unless the corpus says so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from speechfuse.errors import DataError, did_you_mean
from speechfuse.recipe import SplitRecipe
from speechfuse.types import Trial, Utterance

MAX_SAME_PAIRS = 4000
Splits = dict[str, list[Utterance]]


def split_utterances(
    utterances: Sequence[Utterance], choice: SplitRecipe, where: str, min_speakers: int = 1
) -> Splits:
    """Utterances by split: train, dev and test.

    Named speakers come first; without any, the corpus's own split column; without one, 20 % of
    the speakers are the test set. A missing development set is 10 % of the training speakers.

    min_speakers: that each split must have.

    Raises:
        DataError: an unknown speaker, one in two splits, or a split with too few.
    """
    if choice.all_test:
        return {split: list(utterances) for split in ("train", "dev", "test")}
    speakers = sorted({u.speaker or u.id for u in utterances})
    named = {
        split: tuple(getattr(choice, f"{split}_speakers") or ())
        for split in ("train", "dev", "test")
    }
    for split, names in named.items():
        for name in names:
            if name not in speakers:
                hint = did_you_mean(name, speakers)
                raise DataError(f"{where}: {split} speaker '{name}' unknown; {hint}")
    for one, other in combinations(named, 2):
        if both := set(named[one]) & set(named[other]):
            raise DataError(f"{where}: speaker '{min(both)}' is in {one} and in {other}")
    if any(named.values()):
        found = _by_speaker(utterances, named)
    elif any(u.split for u in utterances):
        found = {s: [u for u in utterances if u.split == s] for s in ("train", "dev", "test")}
    else:
        test = _some(speakers, 0.2, min_speakers)
        found = _by_speaker(utterances, {"train": (), "dev": (), "test": tuple(test)})
    for split in ("train", "dev"):
        found[split] = [
            u for u in found[split] if all(u.label(k) == v for k, v in choice.learn_from.items())
        ]
    if not found["dev"] and choice.dev_share:
        random = np.random.default_rng(len(found["train"]))
        order = random.permutation(len(found["train"])).tolist()
        drawn = set(order[: max(1, round(choice.dev_share * len(order)))])
        members = found["train"]
        found["dev"] = [u for i, u in enumerate(members) if i in drawn]
        found["train"] = [u for i, u in enumerate(members) if i not in drawn]
    if not found["dev"]:
        training = sorted({u.speaker or u.id for u in found["train"]})
        chosen = set(_some(training, 0.1, min_speakers)) if len(training) > 1 else set()
        found["dev"] = [u for u in found["train"] if (u.speaker or u.id) in chosen]
        found["train"] = [u for u in found["train"] if (u.speaker or u.id) not in chosen]
    for split, members in found.items():
        here = {u.speaker or u.id for u in members}
        if len(here) < min_speakers:
            raise DataError(
                f"{where}: the {split} split has {len(members)} utterances of {len(here)} "
                f"speakers, at least {min_speakers} needed; name split.{split}_speakers or mend "
                "the corpus's split column"
            )
    return found


def make_trials(utterances: Sequence[Utterance], seed: int = 0) -> tuple[Trial, ...]:
    """Pairs for a corpus without trials: those of one speaker, and twice as many of two."""
    random = np.random.default_rng(seed)
    by_speaker: dict[str, list[str]] = {}
    for u in utterances:
        by_speaker.setdefault(u.speaker or u.id, []).append(u.id)
    same = [pair for ids in by_speaker.values() for pair in combinations(ids, 2)]
    if len(same) > MAX_SAME_PAIRS:
        same = [same[i] for i in np.sort(random.choice(len(same), MAX_SAME_PAIRS, replace=False))]
    names = sorted(by_speaker)
    other: set[tuple[str, str]] = set()
    possible = sum(len(by_speaker[a]) * len(by_speaker[b]) for a, b in combinations(names, 2))
    while len(other) < min(2 * len(same), possible):
        one, two = sorted(random.choice(len(names), 2, replace=False))
        first, second = by_speaker[names[one]], by_speaker[names[two]]
        other.add((first[random.integers(len(first))], second[random.integers(len(second))]))
    return tuple(Trial(a, b, True) for a, b in same) + tuple(
        Trial(a, b, False) for a, b in sorted(other)
    )


def _by_speaker(utterances: Sequence[Utterance], named: dict[str, tuple[str, ...]]) -> Splits:
    taken = {name for names in named.values() for name in names}
    found: Splits = {"train": [], "dev": [], "test": []}
    for u in utterances:
        speaker = u.speaker or u.id
        split = next((s for s, names in named.items() if speaker in names), None)
        if split is None and not named["train"] and speaker not in taken:
            split = "train"
        if split:
            found[split].append(u)
    return found


def _some(speakers: Sequence[str], share: float, least: int) -> list[str]:
    """A share of the speakers, at least so many, the same each time."""
    count = max(least, round(share * len(speakers)))
    chosen = np.random.default_rng(len(speakers)).permutation(len(speakers))[:count]
    return [speakers[i] for i in sorted(chosen)]
