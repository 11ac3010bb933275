"""Conversations from single clips: speakers of one split take turns, which partly overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np
from numpy import float32
from numpy.random import Generator
from numpy.typing import NDArray

from speechfuse.audio import SAMPLE_RATE, read_audio
from speechfuse.data.corpus import Corpus, read_corpus, replacing, write_corpus
from speechfuse.errors import DataError
from speechfuse.turns import Turn, format_turns
from speechfuse.types import Progress, Utterance

_TURNS = 2  # of each speaker
_GAP = (-0.5, 0.3)  # between two turns, by the length of the shorter one; below 0 they overlap
_SEED = 20252


def mix_speakers(corpus: Corpus, count: int, progress: Progress | None = None) -> Corpus:
    """Every clip once, turns of `count` speakers of one split in new files, with a column `turns`.

    Training speakers meet others in each mixture. Elsewhere the same ones always meet, so that no
    speaker is in two groups, and a group can be tested or resampled as one speaker is.

    Raises:
        DataError: too few speakers, or none with clips enough.
    """
    import soundfile

    random = np.random.default_rng(_SEED)
    parts = list(_groups(corpus, count, random))
    if not parts:
        raise DataError(
            f"{corpus.name} has no split with {count} speakers of {_TURNS} clips each; mix fewer "
            "speakers, or give more clips"
        )
    with replacing(corpus.folder) as out:
        (out / "audio").mkdir()
        utterances, about = [], {}
        for number, part in enumerate(parts):
            samples, turns = _mixture(part, random)
            group = "+".join(dict.fromkeys(str(u.speaker) for u in part))
            path = out / "audio" / f"mix{number:05d}.flac"
            soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
            about[path] = (SAMPLE_RATE, len(samples), 1)
            utterances.append(
                Utterance(
                    id=path.stem,
                    audio=path,
                    duration=len(samples) / SAMPLE_RATE,
                    speaker=group,
                    split=part[0].split,
                    extra={"turns": format_turns(turns)},
                )
            )
            if progress:
                progress("mixtures made", number + 1, len(parts))
        made = Corpus(corpus.name, out, tuple(utterances), source=corpus.source)
        write_corpus(made, about)
    return read_corpus(corpus.folder)


def _groups(corpus: Corpus, count: int, random: Generator) -> Iterator[list[Utterance]]:
    """The clips of each mixture in the order of its turns."""
    clips: dict[str, dict[str, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
    for u in corpus.utterances:
        if u.speaker:
            clips[u.split or ""][u.speaker].append(u)
    for split, by_speaker in clips.items():
        left = {
            name: [members[i] for i in random.permutation(len(members))]
            for name, members in by_speaker.items()
        }
        order = list(random.permutation(sorted(left)))
        while any(len(members) >= _TURNS for members in left.values()):
            if split == "train":
                able = [name for name in sorted(left) if len(left[name]) >= _TURNS]
                order = list(random.permutation(able))
            met = [order[i : i + count] for i in range(0, len(order) - count + 1, count)]
            whole = [group for group in met if all(len(left[n]) >= _TURNS for n in group)]
            if not whole:
                break
            for group in whole:
                yield [left[name].pop() for name in islice(cycle(group), _TURNS * count)]


def _mixture(clips: Sequence[Utterance], random: Generator) -> tuple[NDArray[float32], list[Turn]]:
    """The samples of all turns and when each is; nobody interrupts themselves."""
    spoken = [read_audio(u.audio, u.start, u.duration) for u in clips]
    starts: list[int] = []
    free: dict[str, int] = {}  # the sample from which a speaker may speak again
    for index, (u, samples) in enumerate(zip(clips, spoken, strict=True)):
        start = 0
        if index:
            shorter = min(len(samples), len(spoken[index - 1]))
            end = starts[-1] + len(spoken[index - 1])
            start = max(starts[-1], round(end + random.uniform(*_GAP) * shorter))
        starts.append(max(start, free.get(str(u.speaker), 0)))
        free[str(u.speaker)] = starts[-1] + len(samples)
    mixed = np.zeros(max(free.values()), np.float32)
    turns = []
    for u, start, samples in zip(clips, starts, spoken, strict=True):
        mixed[start : start + len(samples)] += samples
        seconds = start / SAMPLE_RATE, (start + len(samples)) / SAMPLE_RATE
        turns.append(Turn(str(u.speaker), *seconds))
    return mixed * min(1.0, 0.99 / max(float(np.abs(mixed).max()), 1e-9)), turns
