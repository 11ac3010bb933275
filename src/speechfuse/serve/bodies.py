"""What the service sends, for its OpenAPI description."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WordBody(_Body):
    """A word where CTC aligns it, times in seconds."""

    text: str
    start: float
    end: float
    score: float = Field(ge=0, le=1)


class TranscriptBody(_Body):
    """What was said; `words` is null where nothing in the model tells times."""

    text: str
    words: list[WordBody] | None
    cut: bool


class StretchBody(_Body):
    """Probabilities of classes in one stretch, times in seconds."""

    start: float
    end: float
    scores: dict[str, float]


class LabelBody(_Body):
    """A class; `scores` is null where the head has none."""

    label: str
    scores: dict[str, float] | None
    stretches: list[StretchBody]


class VoiceBody(_Body):
    """A speaker's vector of unit length: the cosine of two tells how alike voices are."""

    vector: list[float]
    threshold: float | None = Field(description="Cosine from which on two are one speaker's.")


class TurnBody(_Body):
    """One stretch of one speaker, times in seconds."""

    speaker: str
    start: float
    end: float


class SpeakersBody(_Body):
    """Who speaks when."""

    turns: list[TurnBody]


class LayersBody(_Body):
    """Weights of a model's layers: one for each layer, or a row for each layer over positions."""

    start: float
    end: float
    model: str
    layers: list[int]
    weights: list[float] | list[list[float]]
    texts: list[str] | None


class AnswerBody(_Body):
    """Everything that was asked of one recording, by task."""

    audio: str
    duration: float = Field(ge=0)
    results: dict[str, TranscriptBody | LabelBody | VoiceBody | SpeakersBody]
    layers: dict[str, list[LayersBody]] = {}


class ErrorDetail(_Body):
    """What was found, what is expected, what to do."""

    status: int
    name: str
    found: str
    expected: str
    remedy: str


class ErrorBody(_Body):
    """Why there is no answer."""

    error: ErrorDetail


class HealthBody(_Body):
    """The run that answers."""

    status: str
    run: str
    tasks: dict[str, str] = Field(description="What each task gives.")
    inside: int = Field(ge=0, description="Requests being served now.")
