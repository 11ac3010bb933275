"""What Lightning drives: the loss of a batch, the optimiser, scores on the development split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed

from speechfuse.data.crops import random_spans
from speechfuse.data.schedule import Schedule
from speechfuse.evaluate import passes
from speechfuse.heads.standardize import Standardize
from speechfuse.inputs import Inputs
from speechfuse.model import FusionModel
from speechfuse.ops import moved
from speechfuse.optim import make_optimizer, make_rates
from speechfuse.ranks import Rank, in_turns
from speechfuse.recipe import Recipe
from speechfuse.sharding import Sharded
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
    rank: Rank | None = None,
) -> Batch:
    """What is stored of some utterances or their audio, and what the head learns from.

    crop: seconds of each that are read at most, and the seed of where. rank: whose part it is.
    """
    rank = rank or Rank()
    part, parts = rank.part(len(utterances)), rank.parts(len(utterances))
    spans: list[list[slice] | None] = [None] * len(inputs)
    if crop:
        frames = [[one.frames(u) for u in utterances] for one in inputs]
        rates = [one.spec.frame_rate for one in inputs]
        spans = [span[part] for span in random_spans(frames, rates, *crop)]
    utterances = utterances[part]
    wanted = data.task.targets(utterances) if targets else None
    read = [one.batch(utterances, span) for one, span in zip(inputs, spans, strict=True)]
    return Batch(data.name, utterances, read, wanted, parts)


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
        self._norms = [part for part in model.modules() if isinstance(part, Standardize)]
        self._found: list[tuple[str, Sequence[Utterance], list[Any]]] = []
        self._turns: set[str] = set()  # tasks in the step that is taken

    def training_step(self, batch: Batch, _: int) -> Tensor:
        assert batch.targets is not None
        self._turns.add(batch.task)
        for norm in self._norms:
            norm.parts = batch.parts
        loss = self.model.loss(batch.inputs, batch.task, batch.targets)
        total, count = loss.total.detach(), loss.count
        if batch.parts > 1:
            both = torch.stack([total.double(), total.new_tensor(count).double()])
            distributed.all_reduce(both)
            total, count = both[0], float(both[1])
        mean = total / (count or 1)
        self.schedule.saw(batch.task, mean)
        self.log(f"train/{batch.task}/loss", mean.float(), batch_size=len(batch.utterances))
        if not self.schedule.known_ahead:
            shares = zip(self.schedule.tasks, self.schedule.shares(), strict=True)
            self.log_dict({f"train/{task}/share": share for task, share in shares})
        return loss.total * batch.parts / (count or 1)  # gradients are averaged over parts

    def validation_step(self, batch: Batch, _: int) -> None:
        predictions = self.model.predict(batch.inputs, batch.task)
        self._found.append((batch.task, batch.utterances, moved(predictions, torch.device("cpu"))))

    def on_validation_epoch_end(self) -> None:
        """Log every metric, and the mean of the tasks' errors, which selects the checkpoint."""
        errors = []
        by_task: dict[str, dict[str, tuple[Utterance, Any]]] = defaultdict(dict)
        for name, utterances, predictions in in_turns(self._found, self.trainer.world_size):
            for utterance, prediction in zip(utterances, predictions, strict=True):
                by_task[name][utterance.id] = (utterance, prediction)
        for name, found in by_task.items():
            data = self.tasks[name]
            scored, predicted = zip(*found.values(), strict=True)
            scores = data.task.score(data.task.table(scored, predicted, data.trials["dev"]))
            for metric, evidence in scores.items():
                self.log(f"dev/{name}/{metric}", evidence.point())
            primary = scores[data.task.primary].point()
            errors.append(1 - primary if data.task.higher_is_better else primary)
        self._found.clear()
        self.log("dev/error", sum(errors) / len(errors))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Of the whole gradient; where it is sharded, without those of absent tasks, all zeros."""
        turns, self._turns = self._turns, set()
        if not isinstance(self.trainer.strategy, Sharded):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for name, parameter in self.model.named_parameters():
            if self.model.task_of(name) not in (None, *turns):
                parameter.grad = None
        whole: Any = self.trainer.strategy.model
        whole.clip_grad_norm_(gradient_clip_val)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.recipe.training, self.model)
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
    """All development utterances, task after task, or the part of them that a process scores."""

    def __init__(
        self, model: FusionModel, tasks: Mapping[str, TaskData], inputs: AllInputs, rank: Rank
    ) -> None:
        batches = [
            (data, inputs[name], batch)
            for name, data in tasks.items()
            for batch in passes(model, data.splits["dev"])
        ]
        self._batches = batches[rank.part(len(batches))]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        for data, inputs, utterances in self._batches:
            yield load_batch(data, inputs, utterances, targets=False)
