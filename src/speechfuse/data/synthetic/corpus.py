"""Make the synthetic corpus: speakers, sentences and emotions, spoken by espeak-ng in a room.

    64 speakers (36 train, 8 dev, 20 test), four emotions each, every sentence once

Speakers and sentences of one split are in no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechfuse.data.corpus import Corpus
from speechfuse.data.splits import make_trials
from speechfuse.data.synthetic import voices
from speechfuse.data.synthetic.sentences import draw_sentence
from speechfuse.data.synthetic.speaking import SPLITS, Planned, spoken_corpus
from speechfuse.types import Progress, Trial, Utterance

VERSION = 2  # of this recipe for a corpus; another one is made again


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the corpus, byte for byte. The difficulty was set on the development split."""

    seed: int = 7
    speakers: tuple[int, int, int] = (36, 8, 20)  # train, dev, test
    utterances: tuple[int, int, int] = (18, 12, 12)  # of each speaker
    emotion_spread: float = 0.45  # how much performances of an emotion vary
    snr: tuple[float, float] = (5.0, 25.0)  # dB
    reverb_time: tuple[float, float] = (0.1, 0.5)  # seconds
    version: int = VERSION


def prepare_synthetic(
    folder: Path, settings: Settings | None = None, progress: Progress | None = None
) -> Corpus:
    """Make the corpus in `folder`, or read it if these settings made it before.

    Raises:
        DataError: espeak-ng is not installed, or the folder holds something else.
    """
    settings = settings or Settings()
    return spoken_corpus(folder, settings, _plan(settings), _trials, progress)


def _plan(settings: Settings) -> Iterator[Planned]:
    """All utterances; sentences are shared out over the splits before anyone speaks."""
    said: set[str] = set()
    sentences = np.random.default_rng([settings.seed, 1])
    for part, split in enumerate(SPLITS):
        for number in range(settings.speakers[part]):
            name = f"{split}{number:02d}"
            random = np.random.default_rng([settings.seed, 2, part, number])
            speaker = voices.draw_speaker(name, random)
            for index in range(settings.utterances[part]):
                text = draw_sentence(sentences)
                while text in said:
                    text = draw_sentence(sentences)
                said.add(text)
                emotion = voices.EMOTIONS[(index + number) % len(voices.EMOTIONS)]
                prosody = voices.draw_prosody(emotion, settings.emotion_spread, random)
                yield Planned(
                    id=f"{name}-{index:02d}",
                    split=split,
                    text=text,
                    emotion=emotion,
                    speaker=speaker,
                    job=voices.job(text, speaker, prosody, random),
                    seed=(part * 1000 + number, index),
                    extra={"accent": speaker.accent},
                )


def _trials(utterances: Sequence[Utterance]) -> tuple[Trial, ...]:
    by_split = [[u for u in utterances if u.split == split] for split in SPLITS[1:]]
    return tuple(trial for members in by_split for trial in make_trials(members))
