"""What a model says of a recording: a result for each task, with times and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from speechfuse.decision import Decision
from speechfuse.errors import DataError
from speechfuse.turns import Turn


class Word(NamedTuple):
    """A word where CTC aligns it.

    A stretch whose text does not align, as one of more tokens than frames, is one `Word`: all of
    its text, from its beginning to its end, with a score of 0.
    """

    text: str
    start: float  # seconds
    end: float
    score: float  # mean probability of its tokens where they stand, 0 to 1


class Scores(NamedTuple):
    """Probabilities of the classes of one stretch or window."""

    start: float  # seconds
    end: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Transcript:
    """What was said."""

    text: str
    words: Sequence[Word] | None  # None: nothing in the model tells times
    cut: bool = False  # a stretch reached the limit of what is written

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        words = None if self.words is None else [_rounded(word._asdict()) for word in self.words]
        return {"text": self.text, "words": words, "cut": self.cut}


@dataclass(frozen=True)
class Label:
    """One class, or one for each slot as `a | b`."""

    label: str
    scores: Mapping[str, float] | None  # of all classes; None: the head has no logits
    stretches: Sequence[Scores] = ()  # that were read at once
    windows: Sequence[Scores] = ()  # of a few seconds in them, if asked for

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        scores = None if self.scores is None else _rounded(self.scores)
        found = {"label": self.label, "scores": scores, "stretches": _timed(self.stretches)}
        return found | ({"windows": _timed(self.windows)} if self.windows else {})


class Comparison(NamedTuple):
    """How alike two voices are."""

    similarity: float  # cosine, -1 to 1
    same: bool | None  # one speaker; None: the run has no threshold
    decision: Decision | None  # the threshold, and what it costs

    def text(self) -> str:
        """The verdict in words."""
        if self.decision is None:
            return "no threshold yet: speechfuse evaluate finds one"
        who = "one speaker" if self.same else "two speakers"
        return f"{who} at threshold {self.decision.threshold:.3f}; {self.decision.expected()}"


@dataclass(frozen=True)
class Voice:
    """A speaker's vector of unit length."""

    vector: NDArray[float32]
    decision: Decision | None = None  # from where on two are one speaker's

    def similarity(self, other: Voice) -> float:
        """Cosine, -1 to 1."""
        return float(self.vector @ other.vector)

    def compare(self, other: Voice) -> Comparison:
        """Whether it is the same voice, at the threshold of the run."""
        cosine, found = self.similarity(other), self.decision
        return Comparison(cosine, None if found is None else cosine >= found.threshold, found)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        threshold = None if self.decision is None else self.decision.threshold
        return {"vector": [round(float(x), 6) for x in self.vector], "threshold": threshold}


@dataclass(frozen=True)
class Speakers:
    """Who speaks when; speakers are numbered in each stretch that was read at once."""

    turns: Sequence[Turn]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"turns": [_rounded(turn._asdict()) for turn in self.turns]}


Result = Transcript | Label | Voice | Speakers


class Layers(NamedTuple):
    """Weights of one model's layers in one stretch."""

    start: float  # seconds
    end: float
    model: str
    numbers: Sequence[int]
    weights: NDArray[float32]  # (L,), or (L, T) where frames differ
    texts: Sequence[str] | None = None  # what stands at the T positions, if they are no frames


@dataclass(frozen=True)
class Answer:
    """Everything that was asked of one recording."""

    name: str
    duration: float  # seconds
    results: Mapping[str, Result] = field(default_factory=dict)  # by task
    layers: Mapping[str, Sequence[Layers]] = field(default_factory=dict)  # by task, if asked for
    error: str | None = None  # why there are no results

    def __getitem__(self, task: str) -> Result:
        """Raises DataError if the recording could not be read."""
        if self.error is not None:
            raise DataError(f"{self.name}: {self.error}")
        return self.results[task]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"audio": self.name, "duration": round(self.duration, 3)}
        if self.error is not None:
            return found | {"error": self.error}
        found["results"] = {task: result.to_dict() for task, result in self.results.items()}
        if self.layers:
            found["layers"] = {
                task: [_layers(one) for one in given] for task, given in self.layers.items()
            }
        return found


def _layers(one: Layers) -> dict[str, Any]:
    return {
        **_rounded({"start": one.start, "end": one.end}),
        "model": one.model,
        "layers": [*one.numbers],
        "weights": np.round(one.weights.astype(float), 4).tolist(),
        "texts": None if one.texts is None else [*one.texts],
    }


def _timed(parts: Sequence[Scores]) -> list[dict[str, Any]]:
    return [
        {**_rounded({"start": s.start, "end": s.end}), "scores": _rounded(s.scores)} for s in parts
    ]


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
