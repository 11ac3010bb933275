"""Make the synthetic corpus: speakers, sentences and emotions, spoken by espeak-ng in a room.

    64 speakers (36 train, 8 dev, 20 test), four emotions each, every sentence once

Everything is drawn from one seed, each utterance from its own, so the same seed gives the same
bytes. Speakers and sentences of one split are in no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechfuse.data.corpus import Corpus, read_corpus, replacing, write_corpus
from speechfuse.data.splits import make_trials
from speechfuse.data.synthetic import acoustics, espeak, voices
from speechfuse.data.synthetic.sentences import draw_sentence
from speechfuse.types import Progress, Trial, Utterance

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

VERSION = 2  # of this recipe for a corpus; another one is made again
_SPLITS = ("train", "dev", "test")
_MARK = "synthetic.json"  # the settings of a folder we made


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


@dataclass(frozen=True, slots=True)
class _Planned:
    """One utterance before it is spoken."""

    id: str
    split: str
    text: str
    emotion: str
    speaker: voices.Speaker
    job: espeak.Job
    seed: tuple[int, int]  # of its room and noise


def prepare_synthetic(
    folder: Path, settings: Settings | None = None, progress: Progress | None = None
) -> Corpus:
    """Make the corpus in `folder`, or read it if these settings made it before.

    Raises:
        DataError: espeak-ng is not installed, or the folder holds something else.
    """
    import soundfile
    import soxr

    settings = settings or Settings()
    made_by = folder / _MARK
    wanted = json.loads(json.dumps(asdict(settings)))
    if made_by.is_file() and json.loads(made_by.read_text()) == wanted:
        return read_corpus(folder)
    planned = list(_plan(settings))
    with replacing(folder, _MARK) as out:
        for split in _SPLITS:
            (out / "audio" / split).mkdir(parents=True)
        utterances, about = [], {}
        variants = {p.speaker.name: p.speaker.variant for p in planned}
        spoken = espeak.synthesise([p.job for p in planned], variants)
        for number, (plan, samples) in enumerate(zip(planned, spoken, strict=True)):
            raw = samples.astype(np.float32) / 32768
            speech = soxr.resample(raw, espeak.SAMPLE_RATE, 16000, quality="HQ")
            heard = _record(speech, plan, settings)
            path = out / "audio" / plan.split / f"{plan.id}.flac"
            soundfile.write(path, heard, 16000, subtype="PCM_16")
            about[path] = (16000, len(heard), 1)
            utterances.append(_utterance(plan, path, len(heard) / 16000))
            if progress:
                progress("utterances spoken", number + 1, len(planned))
        write_corpus(Corpus(out.name, out, tuple(utterances), _trials(utterances)), about)
        (out / _MARK).write_text(json.dumps(wanted, indent=2) + "\n")
    return read_corpus(folder)


def _plan(settings: Settings) -> Iterator[_Planned]:
    """All utterances; sentences are shared out over the splits before anyone speaks."""
    said: set[str] = set()
    sentences = np.random.default_rng([settings.seed, 1])
    for part, split in enumerate(_SPLITS):
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
                yield _Planned(
                    id=f"{name}-{index:02d}",
                    split=split,
                    text=text,
                    emotion=emotion,
                    speaker=speaker,
                    job=voices.job(text, speaker, prosody, random),
                    seed=(part * 1000 + number, index),
                )


def _record(speech: NDArray[float32], plan: _Planned, settings: Settings) -> NDArray[float32]:
    random = np.random.default_rng([settings.seed, 3, *plan.seed])
    return acoustics.record(
        speech, 16000, random, reverb_time=settings.reverb_time, snr=settings.snr
    )


def _utterance(plan: _Planned, path: Path, seconds: float) -> Utterance:
    return Utterance(
        id=plan.id,
        audio=path,
        duration=seconds,
        text=plan.text,
        speaker=plan.speaker.name,
        emotion=plan.emotion,
        language="en",
        split=plan.split,
        extra={"accent": plan.speaker.accent},
    )


def _trials(utterances: list[Utterance]) -> tuple[Trial, ...]:
    by_split = [[u for u in utterances if u.split == split] for split in _SPLITS[1:]]
    return tuple(trial for members in by_split for trial in make_trials(members))
