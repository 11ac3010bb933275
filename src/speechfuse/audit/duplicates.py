"""Utterances that are the same recording: same bytes, same samples, or nearly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from speechfuse.audit.fingerprint import bit_errors
from speechfuse.audit.listening import Heard, Place, printed
from speechfuse.types import Progress, Utterance

SAME_BITS = 0.17  # at most, of copies; MP3 and Vorbis at their smallest differ in up to 0.165, the
# nearest two of 3,000 spoken digits that are no copies in 0.19
SHARED = 2  # hashes of two sketches that make a pair worth comparing
COMMON = 30  # a hash that more utterances have tells nothing
MOST_PAIRS = 5000  # compared bit by bit

Group = tuple[int, ...]  # places of utterances that are the same


def groups_of(keys: Iterable[Any]) -> list[Group]:
    """Places with one key, where it is not empty."""
    found: dict[Any, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key:
            found[key].append(place)
    return [tuple(places) for places in found.values() if len(places) > 1]


def overlapping(utterances: Sequence[Utterance]) -> list[tuple[int, int]]:
    """Pairs of spans of one file that share more than a tenth of the shorter one."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for place, u in enumerate(utterances):
        by_file[str(u.audio)].append(place)
    pairs = []
    for places in by_file.values():
        places.sort(key=lambda p: utterances[p].start)
        for index, one in enumerate(places):
            end = _end(utterances[one])
            for other in places[index + 1 :]:
                begin = utterances[other].start
                if begin >= end:
                    break
                shared = min(end, _end(utterances[other])) - begin
                if shared > 0.1 * min(_span(utterances[one]), _span(utterances[other])):
                    pairs.append((one, other))
    return pairs


def _end(utterance: Utterance) -> float:
    return utterance.start + _span(utterance)


def _span(utterance: Utterance) -> float:
    return float("inf") if utterance.duration is None else utterance.duration


def nearly_the_same(
    places: Sequence[Place], heard: Sequence[Heard], progress: Progress | None = None
) -> tuple[list[tuple[int, int, float]], int]:
    """Pairs that are copies by their fingerprints, with the share of differing bits.

    Pairs with equal samples are left out. Also returns how many candidates were not compared,
    because there are more than MOST_PAIRS.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for index, listened in enumerate(heard):
        for word in np.frombuffer(listened.sketch, np.uint64).tolist():
            holders[word].append(index)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for members in holders.values():
        if len(members) <= COMMON:
            for pair in combinations(members, 2):
                shared[pair] += 1
    candidates = sorted(
        (
            p
            for p, n in shared.items()
            if n >= SHARED and heard[p[0]].samples != heard[p[1]].samples
        ),
        key=lambda p: (-shared[p], p),
    )
    found = []
    known: dict[int, Any] = {}
    for number, (one, other) in enumerate(candidates[:MOST_PAIRS], start=1):
        for place in (one, other):
            if place not in known:
                if len(known) > 2000:
                    known.clear()
                known[place] = printed(places[place])
        wrong = bit_errors(*known[one], *known[other])
        if wrong <= SAME_BITS:
            found.append((one, other, wrong))
        if progress:
            progress("possible copies", number, min(MOST_PAIRS, len(candidates)))
    return found, max(0, len(candidates) - MOST_PAIRS)


def conflicts(
    groups: Iterable[Sequence[int]], labels: Mapping[str, Sequence[str | None]]
) -> list[tuple[Sequence[int], str]]:
    """Groups of the same audio that have several values of a label, with its name."""
    return [
        (group, name)
        for group in groups
        for name, values in labels.items()
        if len({values[place] for place in group} - {None}) > 1
    ]
