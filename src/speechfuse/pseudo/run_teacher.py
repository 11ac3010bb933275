"""A run of ours as a teacher: its upstreams, its fusion and the head of one of its tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechfuse import build
from speechfuse.audio import pad_clips
from speechfuse.checkpoint import Run
from speechfuse.contracts import ScoresClasses
from speechfuse.errors import RunError, did_you_mean
from speechfuse.evaluate import load_model
from speechfuse.measure import best_device
from speechfuse.ops import file_hash, moved
from speechfuse.pseudo.teacher import Teacher
from speechfuse.runs import training_of
from speechfuse.tasks.classification import Classification

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class RunTeacher(Teacher):
    """A finished run with a classification task."""

    def __init__(self, folder: Path, task: str | None = None) -> None:
        """task: which, if there are several that name a class.

        Raises:
            RunError: no finished run, no such task, or none that names a class.
        """
        self._run = Run(folder)
        recipe = self._recipe = self._run.recipe()
        if not self._run.finished:
            raise RunError(f"{folder} is not trained to its end; go on: {training_of(folder)}")
        self._tasks = {name: build.build_task(name, entry) for name, entry in recipe.tasks.items()}
        for name, state in self._run.tasks().items():
            self._tasks[name].load_state(state)
        self.task = task = _chosen(folder, [*self._tasks], self._able(), task)
        asked = self._tasks[task]
        assert isinstance(asked, Classification)
        self._run.check(recipe)
        self._upstreams = [build.build_upstream(recipe, name) for name in recipe.upstreams]
        self.source, self.label = str(folder), asked.label
        self.classes = self.wanted = list(asked.labels)
        self.seen = self._run.seen()
        self.min_samples = max(one.plan.min_samples for one in self._upstreams)
        self.silence = max(one.plan.silence for one in self._upstreams)
        self.equal = recipe.length_policy != "masked"
        self._device = best_device()

    def identity(self) -> dict[str, str]:
        """The run's own weights and those of its upstreams."""
        upstreams = json.dumps(build.identities(self._recipe), sort_keys=True)
        weights = file_hash([self._run.folder / "model.safetensors"])
        return {"task": self.task, "weights_sha256": weights, "upstreams": upstreams}

    @property
    def name(self) -> str:
        weights = self.identity()["weights_sha256"]
        return f"{self._run.folder.resolve().name}/{self.task}@{weights[:8]}"

    def load(self) -> None:
        self._model = load_model(self._run, self._recipe, self._tasks).to(self._device)
        if not isinstance(self._model.head_of(self.task), ScoresClasses):
            raise RunError(
                f"{self.source}: the head of task '{self.task}' has no logits, so nothing tells "
                "how sure it is; use head 'classifier', or give yours a method logits(frames)"
            )
        for upstream in self._upstreams:
            upstream.to(self._device)

    @torch.no_grad()
    def probabilities(self, clips: Sequence[NDArray[float32]]) -> Tensor:
        wav = moved(pad_clips([torch.from_numpy(clip) for clip in clips]), self._device)
        tuned = build.tuned_upstreams(self._recipe)  # the model's own, it runs them itself
        upstreams = [
            None if name in tuned else upstream
            for name, upstream in zip(self._recipe.upstreams, self._upstreams, strict=True)
        ]
        heard = self._model.hear(upstreams, wav, [self.task])[self.task]
        return self._model.logits(heard, self.task).double().softmax(-1).cpu()

    def _able(self) -> list[str]:
        return [name for name, task in self._tasks.items() if isinstance(task, Classification)]


def _chosen(folder: Path, tasks: Sequence[str], able: Sequence[str], task: str | None) -> str:
    """The task that labels."""
    if task is not None and task not in tasks:
        raise RunError(f"{folder} has no task '{task}'; {did_you_mean(task, able)}")
    if not able or (task is not None and task not in able):
        raise RunError(
            f"{folder} names no class by {task or ' or '.join(tasks)}; a teacher needs a task of "
            f"kind emotion, found besides: {', '.join(able) or 'none'}"
        )
    if task is None and len(able) > 1:
        raise RunError(f"{folder} has the tasks {', '.join(able)}; say which labels with --task")
    return task or able[0]
