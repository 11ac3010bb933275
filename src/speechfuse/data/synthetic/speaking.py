"""From planned utterances to a corpus: espeak-ng speaks, a room and a microphone are added.

Everything is drawn from one seed, each utterance from its own, so the same settings give the same
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from speechfuse.data.corpus import Corpus, read_corpus, replacing, write_corpus
from speechfuse.data.synthetic import acoustics, espeak, voices
from speechfuse.types import Progress, Trial, Utterance

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

SPLITS = ("train", "dev", "test")
_MARK = "synthetic.json"  # the settings of a folder we made


class Settings(Protocol):
    """What every synthetic corpus is decided by; a frozen dataclass, with whatever else it has."""

    @property
    def seed(self) -> int: ...
    @property
    def snr(self) -> tuple[float, float]: ...
    @property
    def reverb_time(self) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """One utterance before it is spoken."""

    id: str
    split: str
    text: str
    speaker: voices.Speaker
    job: espeak.Job
    seed: tuple[int, int]  # of its room and noise
    language: str = "en"
    emotion: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def spoken_corpus(
    folder: Path,
    settings: Settings,
    plan: Iterable[Planned],
    trials: Callable[[Sequence[Utterance]], tuple[Trial, ...]] = lambda utterances: (),
    progress: Progress | None = None,
) -> Corpus:
    """Make the corpus in `folder`, or read it if these settings made it before.

    Raises:
        DataError: espeak-ng is not installed, or the folder holds something else.
    """
    import soundfile
    import soxr

    made_by = folder / _MARK
    wanted: dict[str, Any] = json.loads(json.dumps(asdict(settings)))  # type: ignore[call-overload]
    if made_by.is_file() and json.loads(made_by.read_text()) == wanted:
        return read_corpus(folder)
    planned = list(plan)
    with replacing(folder, _MARK) as out:
        for split in SPLITS:
            (out / "audio" / split).mkdir(parents=True)
        utterances, about = [], {}
        variants = {p.speaker.name: p.speaker.variant for p in planned}
        spoken = espeak.synthesise([p.job for p in planned], variants)
        for number, (one, samples) in enumerate(zip(planned, spoken, strict=True)):
            raw = samples.astype(np.float32) / 32768
            speech = soxr.resample(raw, espeak.SAMPLE_RATE, 16000, quality="HQ")
            heard = _record(speech, one, settings)
            path = out / "audio" / one.split / f"{one.id}.flac"
            soundfile.write(path, heard, 16000, subtype="PCM_16")
            about[path] = (16000, len(heard), 1)
            utterances.append(_utterance(one, path, len(heard) / 16000))
            if progress:
                progress("utterances spoken", number + 1, len(planned))
        write_corpus(Corpus(out.name, out, tuple(utterances), trials(utterances)), about)
        (out / _MARK).write_text(json.dumps(wanted, indent=2) + "\n")
    return read_corpus(folder)


def _record(speech: NDArray[float32], plan: Planned, settings: Settings) -> NDArray[float32]:
    random = np.random.default_rng([settings.seed, 3, *plan.seed])
    return acoustics.record(
        speech, 16000, random, reverb_time=settings.reverb_time, snr=settings.snr
    )


def _utterance(plan: Planned, path: Path, seconds: float) -> Utterance:
    return Utterance(
        id=plan.id,
        audio=path,
        duration=seconds,
        text=plan.text,
        speaker=plan.speaker.name,
        emotion=plan.emotion,
        language=plan.language,
        split=plan.split,
        extra=plan.extra,
    )
