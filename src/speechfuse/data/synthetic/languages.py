"""The synthetic corpus of languages: every voice speaks all of them, so that no voice tells which.

    50 voices (24 train, 6 dev, 20 test), eight languages each, three to five words an utterance

Words are numbers, days, months and colours, in languages.tsv. Voices and words of one split are in
no other: what has to be heard is how a language sounds.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechfuse.data.corpus import Corpus
from speechfuse.data.synthetic import voices
from speechfuse.data.synthetic.speaking import SPLITS, Planned, spoken_corpus
from speechfuse.types import Progress

VERSION = 1  # of this recipe for a corpus; another one is made again
_SHARES = (0.0, 0.6, 0.8, 1.0)  # of a language's words: train, dev, test


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """What decides the corpus, byte for byte."""

    seed: int = 11
    speakers: tuple[int, int, int] = (24, 6, 20)  # train, dev, test
    utterances: int = 2  # of each speaker in each language
    words: tuple[int, int] = (3, 5)  # fewest and most in an utterance
    snr: tuple[float, float] = (5.0, 25.0)  # dB
    reverb_time: tuple[float, float] = (0.1, 0.5)  # seconds
    version: int = VERSION


def prepare_languages(
    folder: Path, settings: LanguageSettings | None = None, progress: Progress | None = None
) -> Corpus:
    """Make the corpus in `folder`, or read it if these settings made it before.

    Raises:
        DataError: espeak-ng is not installed, or the folder holds something else.
    """
    settings = settings or LanguageSettings()
    return spoken_corpus(folder, settings, plan_languages(settings), progress=progress)


def language_words() -> dict[str, list[str]]:
    """The words of each language, by espeak-ng's name for it."""
    with Path(__file__).with_name("languages.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row.pop("language"): " ".join(row.values()).split() for row in rows}


def plan_languages(settings: LanguageSettings) -> Iterator[Planned]:
    """All utterances, speaker by speaker."""
    shared = _shared_out(language_words(), settings.seed)
    for part, split in enumerate(SPLITS):
        for number in range(settings.speakers[part]):
            name = f"{split}{number:02d}"
            random = np.random.default_rng([settings.seed, 2, part, number])
            voice = voices.draw_speaker(name, random)
            for place, (language, words) in enumerate(shared[split].items()):
                speaker = replace(voice, accent=language)
                for index in range(settings.utterances):
                    low, high = settings.words
                    count = random.integers(low, high, endpoint=True)
                    text = " ".join(random.choice(words, count, replace=False))
                    prosody = voices.draw_prosody("neutral", 0.2, random)
                    yield Planned(
                        id=f"{name}-{language}-{index:02d}",
                        split=split,
                        text=text,
                        language=language,
                        speaker=speaker,
                        job=voices.job(text, speaker, prosody, random),
                        seed=(part * 1000 + number, place * settings.utterances + index),
                    )


def _shared_out(words: Mapping[str, list[str]], seed: int) -> dict[str, dict[str, list[str]]]:
    """Every language's words in a drawn order, the first for training, others for dev and test."""
    found: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for place, (language, known) in enumerate(words.items()):
        order = np.random.default_rng([seed, 1, place]).permutation(len(known))
        ends = [round(share * len(known)) for share in _SHARES]
        for part, split in enumerate(SPLITS):
            found[split][language] = [known[i] for i in order[ends[part] : ends[part + 1]]]
    return found
