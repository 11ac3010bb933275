"""One cut that is tried: as it is or trained briefly, and scored on development data."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from safetensors.torch import load_file

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.evaluate import evidence_of
from speechfuse.experiments.compare import System, compare
from speechfuse.experiments.pruning.cuts import Cut, Encoder, cut_recipe
from speechfuse.experiments.pruning.inherit import Inheritance
from speechfuse.metrics import LEAST
from speechfuse.model import FusionModel
from speechfuse.ops import file_hash
from speechfuse.recipe import Recipe
from speechfuse.train import train_run
from speechfuse.types import Metric, Progress


@dataclass(frozen=True)
class Rule:
    """When a cut is good enough."""

    tolerance: float  # by which the primary metric of each task may be worse, in shares of one
    sure: bool = False  # the whole interval has to be within it, not only the value

    def keeps(self, losses: Mapping[str, Metric]) -> bool:
        """losses: of each task; above zero is worse. The worst task decides."""
        return self.worst(losses) <= self.tolerance + 1e-9

    def worst(self, losses: Mapping[str, Metric]) -> float:
        """Of the task that has lost most; without end where there should be an interval."""
        return max(map(self._lost, losses.values()))

    def _lost(self, loss: Metric) -> float:
        if not self.sure:
            return loss.value
        return inf if loss.high is None else loss.high


@dataclass(frozen=True)
class Trial:
    """A cut with what it costs on development data, against the run as it is."""

    cut: Cut
    folder: Path
    steps: int  # that it was trained for
    scores: Mapping[str, Metric]  # of each task's primary metric
    losses: Mapping[str, Metric]  # paired; above zero is worse


class Bench:
    """Where cuts of one run are tried; what was tried is not tried again."""

    def __init__(self, run: Run, folder: Path, steps: int, rate: float) -> None:
        """folder: for the runs of what is tried. steps: of training, for each. rate: times the
        run's learning rates.
        """
        self.run, self.folder, self.steps, self._rate = run, folder, steps, rate
        self.recipe = run.recipe()
        self._weights = run.folder / "model.safetensors"
        self.mark = file_hash([self._weights])
        self._before = system("before", run)

    def tried(
        self,
        cut: Cut,
        encoders: Mapping[str, Encoder],
        progress: Progress | None = None,
        *,
        steps: int | None = None,
    ) -> Trial:
        """Train a cut from the run's weights, and score it. steps: 0 leaves them as they are.

        Raises:
            SpeechFuseError: whatever is wrong with the run's corpora or encoders.
            KeyboardInterrupt: what is done is kept.
        """
        steps = self.steps if steps is None else steps
        recipe = cut_recipe(self.recipe, cut, steps=steps, rate=self._rate)
        folder = self.place(recipe)
        tuned = [*build.tuned_upstreams(self.recipe)]

        def start(model: FusionModel) -> None:
            inherited = Inheritance(self.recipe, encoders, cut, tuned)
            inherited.take(model, load_file(self._weights))

        train_run(recipe, folder, progress, start=start, splits=["dev"])
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # as large as what is kept
        return self.trial(cut, folder)

    def cautions(self, tolerance: float) -> list[str]:
        """Tasks with so little development data that chance may choose a cut."""
        found = []
        for name, scores in evidence_of(self.run, "dev").items():
            primary = build.build_task(name, self.recipe.tasks[name]).primary
            speakers = len(scores[primary].speakers)
            answers = len(self.run.table("dev", name))
            few = [f"{speakers} speaker{'s' * (speakers > 1)}"] if speakers < LEAST else []
            if 0 < tolerance < round(1 / answers, 3):  # as exact as it is told
                few.append(f"{answers} answers, of which one is worth {100 / answers:.1f} points")
            if few:
                found.append(
                    f"{name}: development has {' and '.join(few)}, so chance may choose what is "
                    "removed; add --sure, or prune a run with more development speakers"
                )
        return found

    def place(self, recipe: Recipe) -> Path:
        """A folder for a recipe that begins with these weights."""
        about = json.dumps([self.mark, recipe.model_dump(mode="json")], sort_keys=True)
        return self.folder / hashlib.sha256(about.encode()).hexdigest()[:12]

    def trial(self, cut: Cut, folder: Path) -> Trial:
        """What a run of a cut has lost."""
        scores, losses = {}, {}
        for one in compare([self._before, system("after", Run(folder))], "dev"):
            task = build.build_task(one.task, self.recipe.tasks[one.task])
            if one.metric == task.primary:
                scores[one.task] = one.value
                losses[one.task] = -one.difference if one.higher_is_better else one.difference
        return Trial(cut, folder, Run(folder).recipe().training.steps, scores, losses)


def system(name: str, run: Run) -> System:
    """One run alone."""
    recipe = run.recipe()
    return System(name, recipe, {recipe.seed: [run]})
