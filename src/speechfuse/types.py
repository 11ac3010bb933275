"""The nouns: tensors that know what their axes mean.

Axis letters used everywhere: L layers, B utterances, S samples, T frames, D features, U text
tokens, C classes. Durations are seconds, rates are hertz.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from speechfuse.errors import ShapeError

# Ranges of options: what a recipe gives is checked against them before anything is built.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows
Progress = Callable[[str, int, int], None]  # told what is going on, how much is done, of how much


@dataclass(frozen=True, slots=True)
class Waveforms:
    """A batch of mono audio, padded with zeros on the right."""

    samples: Tensor  # (B, S) float32 in [-1, 1]
    lengths: Tensor  # (B,) int64, valid samples of each utterance
    sample_rate: int  # Hz


@dataclass(frozen=True, slots=True)
class StackSpec:
    """What a layer stack will look like, known before any tensor exists."""

    num_layers: int
    dim: int
    frame_rate: float  # Hz


@dataclass(frozen=True, slots=True)
class LayerStack:
    """Hidden states of every layer of one model, or of several merged models.

    A tuple of layers, not one tensor: a weighted sum is bound by memory traffic, and stacking 13
    to 25 layers first doubles or triples it.
    """

    layers: tuple[Tensor, ...]  # L tensors (B, T, D)
    lengths: Tensor  # (B,) int64, valid frames
    frame_rate: float  # Hz

    def __post_init__(self) -> None:
        shapes = [layer.shape for layer in self.layers]
        if not shapes or len(shapes[0]) != 3 or any(shape != shapes[0] for shape in shapes):
            raise ShapeError(
                f"a layer stack is L tensors of one shape (B, T, D), found {[*map(tuple, shapes)]}"
            )

    @property
    def spec(self) -> StackSpec:
        return StackSpec(len(self.layers), self.layers[0].shape[-1], self.frame_rate)

    def stacked(self) -> Tensor:
        """All layers in one tensor (L, B, T, D): a copy, so only where it is really needed."""
        return torch.stack(self.layers)


@dataclass(frozen=True, slots=True)
class Frames:
    """One feature vector per frame: what a head reads. An utterance vector has T = 1."""

    hidden: Tensor  # (B, T, D)
    lengths: Tensor  # (B,) int64, valid frames
    frame_rate: float  # Hz


@dataclass(frozen=True, slots=True)
class Tokens:
    """A batch of token or class ids, padded on the right."""

    ids: Tensor  # (B, U) int64
    lengths: Tensor  # (B,) int64


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids of one utterance as a language model wrote them."""

    ids: list[int]
    cut: bool  # it was stopped at its limit, before it ended by itself


Where = Literal["speech", "prompt", "text", "prefix"]  # positions of a prompted sequence


@dataclass(frozen=True, slots=True)
class Sequences:
    """Layers of a prompted transformer over [speech; prompt; text], packed without gaps.

    Each sequence begins at position 0, padding is on the right.
    """

    layers: tuple[Tensor, ...]  # L tensors (B, T, D), T positions
    speech: Tensor  # (B,) int64, positions of each part
    prompt: Tensor
    text: Tensor
    frame_rate: float  # Hz, of speech positions

    def at(self, where: Where) -> LayerStack:
        """The layers at some positions.

        speech: its frames. prompt: the last position of the prompt, T = 1. prefix: speech and
        prompt. text: what predicts the U tokens and the end, from the last position of the prompt
        to the last token, T = U + 1.
        """
        prefix = self.speech + self.prompt
        if where in ("speech", "prefix"):
            lengths = self.speech if where == "speech" else prefix
            size = int(lengths.max())
            return LayerStack(tuple(h[:, :size] for h in self.layers), lengths, self.frame_rate)
        lengths = self.text + 1 if where == "text" else torch.ones_like(prefix)
        steps = torch.arange(int(lengths.max()), device=prefix.device)
        rows = torch.arange(len(prefix), device=prefix.device)[:, None]
        index = (prefix[:, None] - 1 + steps).clamp_max(self.layers[0].shape[1] - 1)
        return LayerStack(tuple(h[rows, index] for h in self.layers), lengths, self.frame_rate)


@dataclass(frozen=True, slots=True)
class Alteration:
    """What is done to the audio of a copy of an utterance before it is read."""

    speed: float = 1.0  # times as fast
    noise: Literal["white", "pink"] | Path | None = None  # a path is of a recording
    snr: float = 0.0  # dB
    seed: int = 0  # of the noise


_LABELS = ("text", "speaker", "emotion", "language")  # fields; others are in `extra`


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of a recording and what is known about it; an unknown label is None."""

    id: str
    audio: Path
    start: float = 0.0  # seconds into the recording
    duration: float | None = None  # seconds; None is to the end
    text: str | None = None
    speaker: str | None = None
    emotion: str | None = None
    language: str | None = None
    split: str | None = None  # train, dev or test
    extra: Mapping[str, str] = field(default_factory=dict)
    alteration: Alteration | None = None  # of the audio; duration is as heard, start in the file

    def label(self, name: str) -> str | None:
        """A label by name: text, speaker, emotion, language or a column of `extra`."""
        if name in _LABELS:
            value: str | None = getattr(self, name)
            return value
        return self.extra.get(name)

    def column(self, name: str) -> str | None:
        """Any column of a manifest as text: one of `extra`, or what else is known of it."""
        own = name in self.__slots__ and name != "extra"
        value = getattr(self, name) if own else self.extra.get(name)
        return None if value is None else str(value)

    def labelled(self, name: str, value: str) -> Utterance:
        """The same utterance with another label."""
        if name in _LABELS:
            return replace(self, **{name: value})  # type: ignore[arg-type]
        return replace(self, extra={**self.extra, name: value})


@dataclass(frozen=True, slots=True)
class Trial:
    """Two utterances, and whether the same speaker speaks in both."""

    enrolment: str  # utterance id
    test: str  # utterance id
    same: bool


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its 95 % interval from resampled speakers, and seeds if there are several.

    One speaker, drawn again and again, says nothing of others: low and high are None then.
    """

    value: float
    low: float | None
    high: float | None
    speakers: int

    def __post_init__(self) -> None:
        if self.speakers < 2:  # runs from before that was so kept the value twice
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)

    def __neg__(self) -> Metric:
        """Of a difference: by how much the other is more; from 0.0, so that none is -0.0."""
        low, high = (None if end is None else 0.0 - end for end in (self.high, self.low))
        return Metric(0.0 - self.value, low, high, self.speakers)

    def above(self, bound: float) -> bool:
        """Whether the whole interval is; without one it is not shown."""
        return self.low is not None and self.low > bound

    def below(self, bound: float) -> bool:
        """The same of the other side."""
        return self.high is not None and self.high < bound

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval, as a picture shows it: the value twice where there is none."""
        return (
            self.value if self.low is None else self.low,
            self.value if self.high is None else self.high,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, one task."""

    task: str
    utterances: Sequence[Utterance]
    inputs: Sequence[LayerStack | Waveforms]  # one for each upstream; waveforms if it is tuned
    targets: Tokens | None
    parts: int = 1  # of the batch, each in a process of its own; this is one of them
