"""A run as a graph, and beside it as the library uses it, to be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.contracts import Task, Upstream
from speechfuse.evaluate import load_model
from speechfuse.export.graph import Graph
from speechfuse.heads.ctc_head import CTCHead
from speechfuse.pipeline.speech_model import STRETCH_SECONDS, SpeechModel
from speechfuse.recipe import Recipe
from speechfuse.upstreams.huggingface import HuggingFace
from speechfuse.upstreams.whisper import WhisperStates


@dataclass(frozen=True)
class Source:
    """What is exported, and what it has to equal."""

    run: Run
    recipe: Recipe
    tasks: dict[str, Task]
    graph: Graph
    reference: SpeechModel

    @property
    def strictest(self) -> Upstream:
        """The encoder whose shortest clip is the longest."""
        return max(self.upstreams, key=lambda up: up.plan.min_samples)

    @property
    def min_samples(self) -> int:
        """Below which an encoder gives no frame."""
        return int(self.strictest.plan.min_samples)

    @property
    def prompts(self) -> dict[str, str]:
        """By task that takes some in words, the one that it has if none is given."""
        return {task: self.recipe.tasks[task].prompts[0] for task in self.graph.worded}

    @property
    def upstreams(self) -> list[Upstream]:
        return [up for up in self.graph.upstreams if isinstance(up, Upstream)]

    @property
    def stretch_seconds(self) -> float:
        """The longest clip that all encoders take at once, at most what the library gives them."""
        whispers = [
            up.states
            for up in self.upstreams
            if isinstance(up, HuggingFace) and isinstance(up.states, WhisperStates)
        ]
        rooms = [(one.limit - one.silence) / one.sample_rate for one in whispers]
        return min([STRETCH_SECONDS, *rooms])

    @property
    def low_precision(self) -> bool:
        """Whether the library computes an encoder in bfloat16, which the graph never does."""
        options = [part.options for part in self.recipe.upstreams.values()]
        return any(one.get("compute") == "bfloat16" for one in options)


def load_source(folder: Path) -> Source:
    """Read a run twice.

    Raises:
        RunError: no run there, not trained yet, or other weights of an upstream.
        ExportError: a part of it for which no graph can be made.
    """
    run, reference = Run(folder), SpeechModel(folder, device="cpu")
    recipe, tasks = reference.recipe, reference.tasks
    model = load_model(run, recipe, tasks)
    tuned = build.tuned_upstreams(recipe)
    trained = iter(model.upstreams)
    upstreams: list[Upstream] = []
    for name in recipe.upstreams:
        if name in tuned:
            upstream = next(trained)
            assert isinstance(upstream, Upstream)
        else:
            upstream = build.build_upstream(recipe, name)
            upstream.load()
        upstreams.append(upstream)
    for head in reference.model.heads.values():
        if isinstance(head, CTCHead) and head.search == "flashlight":
            head.search_with(1)
    return Source(run, recipe, tasks, Graph(upstreams, model), reference)


def greedy_instead(recipe: Recipe) -> list[str]:
    """Tasks whose texts the run finds with flashlight-text, which a package is without."""
    heads = {name: entry.head.options for name, entry in recipe.tasks.items()}
    return [name for name, options in heads.items() if options.get("search") == "flashlight"]
