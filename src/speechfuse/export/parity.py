"""Whether a package does what the run does: batches of any size, of clips of any length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speechfuse.audio import SAMPLE_RATE, pad_clips
from speechfuse.contracts import ScoresClasses
from speechfuse.decoding import generate
from speechfuse.export.graph import head_outputs
from speechfuse.export.run import Package, rounded
from speechfuse.heads.ctc_head import CTCHead
from speechfuse.heads.diarization import Diarization
from speechfuse.heads.text import Text
from speechfuse.pipeline.speech_model import SpeechModel
from speechfuse.tasks.rows import padded
from speechfuse.types import Frames

Array = NDArray[Any]
TOLERANCE = 1e-3  # of a number, relative to the largest of its kind, or to one
LOW_TOLERANCE = 0.2  # where the library itself computes in bfloat16
MOST_CLIPS = 4  # in a batch


@dataclass
class Compared:
    """One output over all batches."""

    largest: float = 0.0  # difference, relative to the largest number of its batch, or to one
    equal: int = 0  # decisions: texts, classes, turns; vectors have none
    decisions: int = 0

    def see(self, found: Array, wanted: Array) -> None:
        if not wanted.size:
            return
        scale = max(1.0, float(np.abs(wanted).max()))
        self.largest = max(self.largest, float(np.abs(found - wanted).max()) / scale)

    def decide(self, found: Any, wanted: Any) -> None:
        self.decisions += 1
        self.equal += found == wanted


@dataclass
class Parity:
    """What was compared, and how it went, by task."""

    tolerance: float
    batches: int = 0
    clips: int = 0
    shortest: float = np.inf  # seconds
    longest: float = 0.0
    tasks: dict[str, Compared] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Numbers within the tolerance."""
        return all(one.largest <= self.tolerance for one in self.tasks.values())


def random_batches(
    clips: Sequence[Array], count: int, shortest: int, longest: float, seed: int = 0
) -> list[list[Array]]:
    """Batches of 1 to 4 pieces of clips, from the shortest that gives a frame to all of one."""
    random = np.random.default_rng(seed)
    most = int(longest * SAMPLE_RATE)
    batches = []
    for number in range(count):
        size = 1 + number % MOST_CLIPS
        batch = []
        for _ in range(size):
            clip = clips[int(random.integers(len(clips)))][:most]
            low = min(shortest, len(clip))
            batch.append(clip[: int(random.integers(low, len(clip) + 1))])
        batches.append(batch)
    batches[0] = [batches[0][0][:shortest]]
    return batches


def compare(
    package: Package, library: SpeechModel, batches: Sequence[Sequence[Array]], tolerance: float
) -> Parity:
    """Every task of every batch."""
    found = Parity(tolerance, tasks={task: Compared() for task in library.tasks})
    for batch in batches:
        found.batches += 1
        found.clips += len(batch)
        seconds = [len(clip) / SAMPLE_RATE for clip in batch]
        found.shortest, found.longest = (
            min(found.shortest, *seconds),
            max(found.longest, *seconds),
        )
        _compare_batch(package, library, batch, found.tasks)
    return found


@torch.no_grad()
def _compare_batch(
    package: Package, library: SpeechModel, batch: Sequence[Array], tasks: Mapping[str, Compared]
) -> None:
    wav = pad_clips([torch.from_numpy(clip) for clip in batch])
    made = package.outputs(wav.samples.numpy(), wav.lengths.numpy(), [*tasks])
    inputs = [wav if up is None else up(wav) for up in library._frozen.values()]
    stacks = library.model.stacks(inputs)
    for task, compared in tasks.items():
        frames = library.model.fuse(stacks, task)
        head: Any = library.model.head_of(task)
        if isinstance(head, Text):
            _compare_text(package, library, batch, task, frames, made, compared)
            continue
        read = library.model.read(frames, task)
        name = package.tasks[task]["outputs"][0]
        first, (wanted, *sizes) = made[name], head_outputs(head, read)
        if isinstance(head, CTCHead | Diarization):
            answers: list[Any] = head.predict(read)
            if isinstance(head, CTCHead):
                answers = _transcripts(library, task, frames, answers)
            for row, (found, size) in enumerate(zip(first, sizes[0].tolist(), strict=True)):
                assert int(made[f"{task}.lengths"][row]) == size, "frames of a clip"
                compared.see(found[:size], wanted[row, :size].numpy())
                alone = {f"{task}.lengths": np.array([size]), name: found[None]}
                heard = package._heard(task, alone)
                told = _without_scores(heard) if isinstance(head, CTCHead) else heard
                compared.decide(told, answers[row])
            continue
        compared.see(first, wanted.numpy())
        if isinstance(head, ScoresClasses):
            for one, other in zip(first, wanted.numpy(), strict=True):
                compared.decide(_classes(package, task, one), _classes(package, task, other))


def _compare_text(
    package: Package,
    library: SpeechModel,
    batch: Sequence[Array],
    task: str,
    frames: Frames,
    made: Mapping[str, Array],
    compared: Compared,
) -> None:
    """Texts that are written, and the scores of each token behind the library's own text."""
    reader, head = library.model.reader, library.model.head_of(task)
    assert reader is not None
    assert isinstance(head, Text)
    written = generate(reader, head, frames, task)
    answers = _transcripts(library, task, frames, written)
    for clip, answer in zip(batch, answers, strict=True):
        alone = package.outputs(clip[None], np.array([len(clip)]), [task])
        compared.decide(_without_scores(package._heard(task, alone)), answer)
    if head.branch is not None:
        (speech,) = reader(frames, task, ["speech"])
        scores = head.ctc_log_probs(speech).numpy()
        for row, size in enumerate(speech.lengths.tolist()):
            compared.see(made[f"{task}.log_probs"][row, :size], scores[row, :size])
    texts = [one.ids for one in written]
    (heard,) = reader(frames, task, ["text"], text=padded(texts))
    wanted = head.logits(heard.hidden).numpy()
    names = ("logits", "valid", "cache", "heard")
    given = {name: made[f"{task}.{name}"] for name in names if f"{task}.{name}" in made}
    logits = given.pop("logits")
    for step in range(wanted.shape[1]):
        rows = [row for row, ids in enumerate(texts) if len(ids) >= step]
        compared.see(logits[rows], wanted[rows, step])
        if step == wanted.shape[1] - 1:
            break
        tokens = np.array([ids[step] if len(ids) > step else 0 for ids in texts])
        decoder = package._graph(package.tasks[task]["decoder"])
        stepped = decoder({"tokens": tokens, **given}, ["logits", "cache_out"])
        logits, given["cache"] = stepped["logits"], stepped["cache_out"]
        given["valid"] = np.concatenate([given["valid"], np.ones((len(batch), 1), bool)], axis=1)


def _transcripts(
    library: SpeechModel, task: str, frames: Frames, found: Sequence[Any]
) -> list[dict[str, Any]]:
    """What the library tells of what a head has found."""
    results = library._results(task, frames, found, None, None)
    return [_without_scores(one.to_dict()) for one in results]


def _without_scores(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A text, the times of its words, and whether it is cut; the numbers are compared apart."""
    words = rounded(answer["words"])
    times = words and [(one["text"], one["start"], one["end"]) for one in words]
    return {**answer, "words": times}


def _classes(package: Package, task: str, scores: Array) -> Any:
    entry = package.tasks[task]
    return package.classes(task, scores) if "slots" in entry else int(scores.argmax())
