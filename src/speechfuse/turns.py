"""Who speaks when: turns as text, and the diarization error rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np

from speechfuse.errors import DataError
from speechfuse.metrics import SpeakerSums


class Turn(NamedTuple):
    """One stretch of one speaker, in seconds."""

    speaker: str
    start: float
    end: float


def parse_turns(text: str) -> list[Turn]:
    """Turns of a text like `anna 0.00 1.25; ben 0.90 2.40`, in seconds; the empty text has none.

    Raises:
        DataError: one that is not a name, a start and a later end.

    >>> parse_turns("anna 0.00 1.25; ben 0.90 2.40")[1]
    Turn(speaker='ben', start=0.9, end=2.4)
    """
    found = []
    for part in text.split(";") if text.strip() else ():
        try:
            speaker, start, end = part.rsplit(maxsplit=2)
            turn = Turn(speaker.strip(), float(start), float(end))
        except ValueError as error:
            raise DataError(
                f"turn '{part.strip()}': expected a speaker, a start and an end in seconds, like "
                "'anna 0.00 1.25; ben 0.90 2.40'"
            ) from error
        if not 0 <= turn.start < turn.end:
            raise DataError(f"turn '{part.strip()}' ends before it starts; mend its times")
        found.append(turn)
    return found


def format_turns(turns: Iterable[Turn]) -> str:
    """The text of some turns, to the millisecond.

    >>> format_turns([Turn("anna", 0, 1.25)])
    'anna 0.000 1.250'
    """
    return "; ".join(f"{t.speaker} {t.start:.3f} {t.end:.3f}" for t in turns)


def speakers_of(turns: Iterable[Turn]) -> list[str]:
    """Everyone who speaks, in the order of their first turns."""
    return list(dict.fromkeys(t.speaker for t in sorted(turns, key=lambda t: t.start)))


def diarization_error(reference: Sequence[Turn], found: Sequence[Turn]) -> tuple[float, float]:
    """Seconds that are wrong, and seconds of speech; overlapping speech counts for each speaker.

    Wrong is a speaker missed, one too many, or another than the true one, where names are matched
    as it is best for the whole utterance. No collar: every millisecond counts.
    """
    here, there = speakers_of(reference), speakers_of(found)
    size = max(len(here), len(there))
    edges = sorted({edge for t in [*reference, *found] for edge in (t.start, t.end)})
    both = np.zeros((size, size))  # seconds in which reference i and found j speak
    wrong_count = speech = least = 0.0
    for start, end in pairwise(edges):
        true = _active(reference, here, start)
        told = _active(found, there, start)
        speech += len(true) * (end - start)
        wrong_count += abs(len(true) - len(told)) * (end - start)
        least += min(len(true), len(told)) * (end - start)
        for i in true:
            for j in told:
                both[i, j] += end - start
    matched = max(
        sum(both[i, j] for i, j in enumerate(order)) for order in permutations(range(size))
    )
    return wrong_count + least - float(matched), speech


def _active(turns: Sequence[Turn], names: Sequence[str], time: float) -> set[int]:
    return {names.index(t.speaker) for t in turns if t.start <= time < t.end}


def diarization_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str]
) -> SpeakerSums:
    """Wrong seconds by seconds of speech (DER), summed before they are divided.

    speakers: what is resampled, one for each pair of texts.
    """
    names = sorted(set(speakers))
    rows = np.zeros((len(names), 2))
    for reference, hypothesis, speaker in zip(references, hypotheses, speakers, strict=True):
        rows[names.index(speaker)] += diarization_error(
            parse_turns(reference), parse_turns(hypothesis)
        )
    return SpeakerSums(names, rows, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-9))
