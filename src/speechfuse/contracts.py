"""The verbs: the roles a part can play, with nothing implemented here.

Upstream   waveforms      -> layer stack     (frozen foundation model)
Merge      layer stacks   -> layer stack     (model fusion)
Interface  layer stack    -> frames          (layer fusion)
Fusion     layer stacks   -> frames          (both, in one order or the other)
Context    frames, prompt -> layer stack     (prompted transformer)
Head       frames         -> predictions, loss
Task       utterances     -> targets; predictions -> metrics

Each part is told the `StackSpec` that it will receive and states the one that it gives. Its
options are the keyword-only arguments of its constructor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from speechfuse.decision import Decision
from speechfuse.errors import ShapeError
from speechfuse.metrics import Evidence
from speechfuse.types import (
    Frames,
    LayerStack,
    Sequences,
    StackSpec,
    Tokens,
    Trial,
    Utterance,
    Waveforms,
)

Row = dict[str, str]
Prediction = Literal["tokens", "class", "classes", "vector", "turns"]  # of one utterance


class UpstreamPlan(NamedTuple):
    """What an upstream will give and cost, known from its configuration alone."""

    spec: StackSpec
    parameters: int
    macs_per_second: float  # multiply-adds per second of audio
    min_samples: int  # shortest clip that gives a frame
    silence: float = 0.0  # seconds that are computed after each clip


class Upstream(nn.Module, ABC):
    """A model that shows all of its layers. Frozen: in evaluation mode, without gradients.

    Constructing it reads its configuration only; weights come with `load`, or when they are
    first needed. One that can be trained shows its `blocks`, and has gradients once it is `tuned`.
    """

    plan: UpstreamPlan
    sample_rate: int  # Hz
    tuned: bool = False  # some of its parameters are trained
    pools: bool = False  # over time: one vector for each utterance, T = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's own numbers of the layers that it gives; all of them, unless it was asked."""
        return tuple(range(self.plan.spec.num_layers))

    def load(self) -> None:
        """Read the weights, if there are any and they are not here yet.

        Under torch.device("meta") there are shapes alone, and nothing is read.
        """

    def blocks(self) -> Sequence[nn.Module]:
        """Once it is loaded, the blocks that can be trained, from the bottom; none if none can."""
        return ()

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What training all of it would train: no constants, nothing that no layer reads."""
        return [*self.named_parameters()]

    def frames(self, samples: Tensor) -> Tensor:
        """Frames that clips of so many samples have, exactly; of one that has blocks."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, wav: Waveforms) -> LayerStack: ...

    def stream(self, wav: Waveforms) -> tuple[Tensor, Iterable[Tensor]]:
        """Lengths in frames (B,), and the same layers (B, T, D) one by one as they are made."""
        stack: LayerStack = self(wav)
        return stack.lengths, stack.layers

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Name, revision and content hash: what a run folder keeps instead of a copy."""

    def manner(self) -> Mapping[str, Any]:
        """What else, beside the weights, decides what is in a layer of a clip."""
        return {}


class Merge(nn.Module, ABC):
    """Several aligned stacks in, one stack out."""

    spec: StackSpec
    project_to: int | None = None  # width to which what the interface makes of it is projected
    interface_dim: int | None = None  # width that the interface itself has to end in
    sums: bool = False  # what it gives is the sum of the stacks and nothing else
    alike: bool = False  # does the same to every layer: given one of each stack, it merges these

    @classmethod
    def is_fixed(cls, options: Mapping[str, Any]) -> bool:
        """Whether it is linear and nothing in it is learned or drawn, so that what it gives may be
        stored; options: all of them, as a recipe has them.
        """
        return False

    @abstractmethod
    def forward(self, stacks: Sequence[LayerStack]) -> LayerStack: ...

    def model_weights(self) -> Tensor | None:
        """Learned weights of the models that sum to one, (N,); None if it has none."""
        return None


class LayerStream(ABC):
    """An interface at work on layers that come one by one, so that they are never held at once.

    For inference: nothing is kept for a gradient.
    """

    @abstractmethod
    def add(self, index: int, hidden: Tensor) -> None:
        """Use layer `index`, (B, T, D); any order, each comes once."""

    @abstractmethod
    def frames(self) -> Tensor:
        """What all layers gave, (B, T, out_dim)."""


class FusionStream(ABC):
    """A fusion at work on the layers of its encoders, which come one by one.

    For inference: nothing is kept for a gradient.
    """

    @abstractmethod
    def accumulate(self, index: int, hidden: Tensor, model: int = 0) -> None:
        """Take layer `index` of an encoder, (B, T, D); any order, each once.

        Least is held if encoders go in step, each as far as the others in its depth.

        Raises:
            ShapeError: there is no such layer, or it has come already.
        """

    @abstractmethod
    def result(self) -> Frames:
        """What the fusion gives for the whole stacks.

        Raises:
            ShapeError: a layer has not come.
        """


class Interface(nn.Module, ABC):
    """A layer stack in, one vector per frame out.

    One that can end in another width than it reads takes that as `out_dim`, an int or None.
    """

    out_dim: int
    pools: bool = False  # over time: one vector for each utterance, T = 1
    # A linear map of the layers plus a constant, the same in every frame of a batch: of the mean
    # over time it makes the mean of what it makes of the frames.
    linear: bool = False

    def blocks(self) -> list[slice]:
        """Output features that come from other layers than the rest, for example of a position."""
        return [slice(None)]

    @abstractmethod
    def forward(self, stack: LayerStack, task: str) -> Frames: ...

    def mixture(self, task: str) -> Tensor | None:
        """Weights (L,), if what it gives is the layers' sum with these and nothing else."""
        return None

    def learned_weights(self) -> Mapping[str, Tensor]:
        """Softmaxes of learned logits that are the same in every frame, (L,) or (L, D).

        By what they are for; none if it has no such logits.
        """
        return {}

    def stream(self, task: str) -> LayerStream:
        """The same, fed layer by layer.

        Raises:
            ShapeError: it needs all layers of a frame together.
        """
        raise ShapeError(
            f"{type(self).__name__} reads all layers of a frame together and cannot take them one "
            "by one; give it the whole stack"
        )


class Fusion(nn.Module, ABC):
    """The stacks of all upstreams in, one vector per frame out."""

    merge: Merge
    out_dim: int
    frame_rate: float  # Hz

    @abstractmethod
    def readings(self, stacks: Sequence[LayerStack]) -> list[tuple[Interface, LayerStack]]:
        """Each interface with the stack that it reads."""

    @abstractmethod
    def forward(self, stacks: Sequence[LayerStack], task: str) -> Frames: ...

    @abstractmethod
    def stream(
        self, task: str, specs: Sequence[StackSpec], lengths: Sequence[Tensor]
    ) -> FusionStream:
        """The same, fed layer by layer as encoders make them. specs, lengths (B,): of each one's.

        Raises:
            ShapeError: a part needs all layers of a frame together.
        """


class Context(nn.Module, ABC):
    """A transformer over [speech; prompt; text] that shows all of its layers.

    Speech and prompt see each other, a position of the text sees them and the text before it.
    """

    spec: StackSpec  # frame_rate: of speech positions
    join: int = 1  # frames that are one speech position

    @abstractmethod
    def forward(
        self,
        frames: Frames,
        task: str,
        text: Tokens | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Sequences:
        """text: tokens that are known. prompts: in words, one for each utterance.

        Raises:
            RecipeError: a task that it was not made for, or words where it has learned none.
        """

    def finish(self, hidden: Tensor) -> Tensor:
        """The norm that stands above its layers, on what was made of them."""
        return hidden


@runtime_checkable
class ReadsPrefix(Protocol):
    """An interface that can weigh the layers of an utterance by its speech and prompt alone."""

    reads_prefix: bool  # it is asked to

    def prefix_scores(self, prefix: LayerStack) -> Tensor | None: ...

    def mixed(self, stack: LayerStack, task: str, heard: Tensor | None) -> Frames: ...


@runtime_checkable
class Fitted(Protocol):
    """An interface that is fitted to data before the first step, and keeps that as buffers."""

    def fit(self, stacks: Iterable[LayerStack]) -> None:
        """Read what the interface will read of training utterances, once."""
        ...


@runtime_checkable
class ShowsLayers(Protocol):
    """An interface whose mixing weights can be read."""

    def layer_weights(self, stack: LayerStack, task: str) -> Mapping[str, Tensor]:
        """Non-negative weights that sum to one over layers: (L,) or (L, B, T).

        By what they are for; under "" where there is one kind.
        """
        ...


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss as sum and count, so that batches and ranks of different size average rightly."""

    total: Tensor  # ()
    count: float  # of what was summed, or the sum of its weights


class Head(nn.Module, ABC):
    """Turns frames into predictions and, given targets, into a loss."""

    predicts: Prediction
    reads: Literal["frames", "text"] = "frames"  # text: it predicts tokens one after the other
    units: str = "characters"  # of texts that it is made for

    @classmethod
    def reads_mean(cls, options: Mapping[str, Any]) -> bool:
        """Whether all that it reads of frames is their mean over time, after linear layers at most.

        options: all of them, as a recipe has them.
        """
        return False

    @abstractmethod
    def loss(self, frames: Frames, targets: Tokens) -> LossSum: ...

    @abstractmethod
    def predict(self, frames: Frames) -> list[Any]:
        """One prediction per utterance, in the head's own terms.

        Token ids, a class or several, a vector, or turns as (speaker, start, end). One that reads
        text gives the next token: `decoding.generate` writes with it.
        """


@runtime_checkable
class ScoresClasses(Protocol):
    """A head that can tell how sure it is of each class."""

    def logits(self, frames: Frames) -> Tensor:
        """Unnormalised scores, (B, C)."""
        ...


@runtime_checkable
class Searches(Protocol):
    """A head that finds the best text among several."""

    def search_with(self, beam_size: int) -> None:
        """Keep so many texts from now on; 1 is greedy."""
        ...


@runtime_checkable
class Decides(Protocol):
    """A task whose scores become yes or no at a threshold."""

    def decision(self, development: Sequence[Row], test: Sequence[Row]) -> Decision:
        """Found on the table of the development split; test: what it costs there, no more."""
        ...


class Task(ABC):
    """What is asked of a corpus: which labels it needs, what a head learns from, how it is scored.

    State that comes from training data (vocabulary, label set) is fitted once and kept with the
    run.
    """

    reads: Prediction  # what its head must predict
    needs: tuple[str, ...]  # labels that every utterance must have
    primary: str  # the metric that selects a checkpoint
    higher_is_better: bool
    min_speakers: int = 1  # that a split must have to be scored

    @abstractmethod
    def fit(self, utterances: Sequence[Utterance]) -> None:
        """Learn label set or vocabulary from training utterances."""

    def weigh(self, utterances: Sequence[Utterance]) -> None:  # noqa: B027  (most weigh nothing)
        """After `fit`, count all that is learned from, with labels that only learning has."""

    def check(self, utterances: Sequence[Utterance]) -> None:  # noqa: B027  (most need none)
        """Raise DataError for utterances, of any split, that cannot be scored."""

    def check_trials(self, trials: Sequence[Trial]) -> None:  # noqa: B027
        """Raise DataError for the trials of a split that cannot be scored."""

    @abstractmethod
    def head_options(self) -> dict[str, Any]:
        """Sizes that the head must have for this data, for example num_classes."""

    @abstractmethod
    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        """What the head learns from."""

    @abstractmethod
    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        """References and predictions as text, one row each: what a run folder keeps."""

    @abstractmethod
    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        """Metrics of such a table, by name."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `fit` learned, as JSON."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None: ...
