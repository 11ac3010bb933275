"""What Lightning drives: the loss of a batch, the optimiser, scores on the development split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from speechfuse.data.crops import random_spans
from speechfuse.data.schedule import Schedule
from speechfuse.evaluate import passes
from speechfuse.inputs import Inputs
from speechfuse.model import FusionModel
from speechfuse.ops import moved
from speechfuse.optim import make_optimizer, make_rates
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData
from speechfuse.types import Batch, Utterance

AllInputs = Mapping[str, Sequence[Inputs]]  # by task, one for each upstream


def load_batch(
    data: TaskData,
    inputs: Sequence[Inputs],
    utterances: Sequence[Utterance],
    *,
    targets: bool,
    crop: tuple[float, int] | None = None,
) -> Batch:
    """What is stored of some utterances or their audio, and what the head learns from.

    crop: seconds of each that are read at most, and the seed of where.
    """
    wanted = data.task.targets(utterances) if targets else None
    spans: list[list[slice] | None] = [None] * len(inputs)
    if crop:
        frames = [[one.frames(u) for u in utterances] for one in inputs]
        spans = [*random_spans(frames, [one.spec.frame_rate for one in inputs], *crop)]
    read = [one.batch(utterances, span) for one, span in zip(inputs, spans, strict=True)]
    return Batch(data.name, utterances, read, wanted)


class FusionTraining(LightningModule):
    """A model that learns its tasks in the turns of a schedule."""

    def __init__(
        self,
        recipe: Recipe,
        model: FusionModel,
        tasks: Mapping[str, TaskData],
        schedule: Schedule,
    ) -> None:
        super().__init__()
        self.recipe, self.model, self.tasks, self.schedule = recipe, model, tasks, schedule
        self._found: dict[str, list[tuple[Utterance, Any]]] = defaultdict(list)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        assert batch.targets is not None
        loss = self.model.loss(batch.inputs, batch.task, batch.targets)
        mean = loss.total / max(1, loss.count)
        self.schedule.saw(batch.task, mean.detach())
        self.log(f"train/{batch.task}/loss", mean.detach(), batch_size=len(batch.utterances))
        return mean

    def validation_step(self, batch: Batch, _: int) -> None:
        predictions = self.model.predict(batch.inputs, batch.task)
        self._found[batch.task] += zip(batch.utterances, predictions, strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log every metric, and the mean of the tasks' errors, which selects the checkpoint."""
        errors = []
        for name, found in self._found.items():
            data = self.tasks[name]
            utterances, predictions = zip(*found, strict=True)
            scores = data.task.score(data.task.table(utterances, predictions, data.trials["dev"]))
            for metric, evidence in scores.items():
                self.log(f"dev/{name}/{metric}", evidence.point())
            primary = scores[data.task.primary].point()
            errors.append(1 - primary if data.task.higher_is_better else primary)
        self._found.clear()
        self.log("dev/error", sum(errors) / len(errors))

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.recipe, self.model)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": make_rates(self.recipe.training, optimizer),
                "interval": "step",
            },
        }

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        return replace(
            batch, inputs=moved(batch.inputs, device), targets=moved(batch.targets, device)
        )


class Development:
    """All development utterances, task after task."""

    def __init__(
        self, model: FusionModel, tasks: Mapping[str, TaskData], inputs: AllInputs
    ) -> None:
        self._batches = [
            (data, inputs[name], batch)
            for name, data in tasks.items()
            for batch in passes(model, data.splits["dev"])
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        for data, inputs, utterances in self._batches:
            yield load_batch(data, inputs, utterances, targets=False)
