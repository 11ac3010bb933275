"""How far the tasks pull what they share in one direction, while they are learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from speechfuse.data.stream import Source
from speechfuse.errors import RecipeError
from speechfuse.model import FusionModel
from speechfuse.ops import at_rest, kept_random, moved, seed_for
from speechfuse.types import Batch, Utterance

HALVES = ("a", "b")


class LogConflict(Callback):
    """Cosines of the gradients of two tasks' losses, for all parameters that both have.

    cosine/asr/emotion in the log: below 0 they disagree (Yu et al. 2020, arXiv:2001.06782). Beside
    it stands what there is to reach, cosine/asr/asr and cosine/emotion/emotion: of two batches of
    one task, over the same parameters. Batches are drawn from the training utterances by seed and
    step; dropout is off; nothing that training draws or keeps is touched.
    """

    def __init__(
        self,
        every: int,
        sources: Mapping[str, Source],
        load: Callable[[str, Sequence[Utterance]], Batch],
        seed: int,
    ) -> None:
        self._every, self._sources, self._load, self._seed = every, sources, load, seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self._every or batch_idx % trainer.accumulate_grad_batches:
            return
        model: Any = pl_module.model
        with kept_random():
            found = self.cosines(model, step, pl_module.device)
        for logger in trainer.loggers:
            logger.log_metrics(found, step)

    def cosines(self, model: FusionModel, step: int, device: torch.device) -> dict[str, float]:
        """By the name in the log."""
        modes = {module: module.training for module in model.modules()}
        at_rest(model)
        named = {
            (task, half): _gradients(model, self._batch(task, half, step, device))
            for task in self._sources
            for half in HALVES
        }
        for module, training in modes.items():
            module.training = training
        shared = set.intersection(*(set(gradients) for gradients in named.values()))
        if not shared:
            raise RecipeError(
                "training.log_conflict: the tasks share no trained parameters, so nothing can pull "
                "them apart; leave it out, or share them with fusion.per_task=false or a context"
            )
        flat = {
            place: torch.cat([gradients[name].flatten() for name in sorted(shared)])
            for place, gradients in named.items()
        }
        return {
            f"cosine/{one}/{other}": float(
                F.cosine_similarity(flat[one, "a"], flat[other, "b"], dim=0)
            )
            for one, other in combinations_with_replacement(self._sources, 2)
        }

    def _batch(self, task: str, half: str, step: int, device: torch.device) -> Batch:
        """Of any durations, up to the seconds of a batch; the two halves have no clip in common."""
        source = self._sources[task]
        generator = torch.Generator().manual_seed(seed_for(self._seed, "conflict", task, str(step)))
        order = torch.randperm(len(source.utterances), generator=generator).tolist()
        drawn: list[Utterance] = []
        seconds = 0.0
        for index in order[HALVES.index(half) :: len(HALVES)]:
            seconds += source.seconds(source.utterances[index])
            if drawn and seconds > source.batch_seconds:
                break
            drawn.append(source.utterances[index])
        batch = self._load(task, drawn)
        inputs, targets = moved(batch.inputs, device), moved(batch.targets, device)
        return Batch(task, drawn, inputs, targets)


def _gradients(model: FusionModel, batch: Batch) -> dict[str, Tensor]:
    """By name, of the parameters that the loss of a batch depends on."""
    assert batch.targets is not None
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        loss = model.loss(batch.inputs, batch.task, batch.targets)
        mean = loss.total / max(1, loss.count)
        found = torch.autograd.grad(mean, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}
