"""Train fusion, heads and tuned upstreams with Lightning: one batch, one task."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from speechfuse import build
from speechfuse.alignment import common_lengths
from speechfuse.callbacks import (
    Events,
    LongCSV,
    Moved,
    OneLine,
    ShowProgress,
    StepSeed,
    Stop,
    quiet,
)
from speechfuse.checkpoint import Run
from speechfuse.data.crops import random_spans
from speechfuse.data.schedule import Schedule, make_schedule
from speechfuse.data.stream import Source, Stream, draw_batches
from speechfuse.errors import DataError, RecipeError, ShapeError
from speechfuse.evaluate import evaluate_run, passes
from speechfuse.fusion import fit_interfaces
from speechfuse.heads.ctc_head import CTCHead, frames_needed
from speechfuse.inputs import Inputs, find_inputs
from speechfuse.model import SHARED, FusionModel
from speechfuse.ops import moved, seed_for
from speechfuse.optim import make_optimizer, make_rates
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData, load_tasks
from speechfuse.types import Batch, LayerStack, Progress, Utterance

AllInputs = Mapping[str, Sequence[Inputs]]  # by task, one for each upstream


def train_run(recipe: Recipe, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare, extract, train and evaluate; goes on where an earlier call stopped.

    Returns the metrics that are in the run folder.

    Raises:
        SpeechFuseError: whatever is wrong with recipe, data or upstreams, before any training.
        KeyboardInterrupt: Ctrl-C or SIGTERM; training ends its step first and keeps it.
    """
    run = Run(folder)
    run.check(recipe)
    if run.finished:
        return run.metrics()
    tasks = load_tasks(recipe, progress=progress)
    marks = {name: data.marks() for name, data in tasks.items()}
    run.check_data(marks)
    model = build.build_model(
        recipe, build.stack_specs(recipe), {name: data.task for name, data in tasks.items()}
    )
    _check_trained(recipe, model)
    inputs = find_inputs(recipe, tasks, progress)
    for data in tasks.values():
        _check_aligned(recipe, data, inputs[data.name])
    short = {name: _check_targets(name, model, tasks[name], inputs[name]) for name in tasks}
    run.begin(recipe)
    run.save_tasks({name: data.task.state() for name, data in tasks.items()}, marks)
    began = time.monotonic()
    if not (run.folder / "checkpoints" / "last.ckpt").is_file():  # that holds what was fitted
        _fit_interfaces(model, tasks, inputs)
    if any(p.requires_grad for p in model.parameters()):
        _fit(recipe, model, tasks, inputs, run, progress)
    run.save_model(model)
    about = {
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began, 1),
        "parameters": {name: model.parameters_of(name) for name in tasks},
        "targets_longer_than_frames": {name: count for name, count in short.items() if count},
    }
    return evaluate_run(run, model=model, tasks=tasks, inputs=inputs, about=about)


def _check_trained(recipe: Recipe, model: FusionModel) -> None:
    """Refuse to train on speakers who are tested."""
    for name, entry in recipe.tasks.items():
        if entry.split.all_test and model.parameters_of(name):
            raise RecipeError(
                f"task '{name}': split.all_test is for heads and interfaces without parameters, "
                f"this one trains {model.parameters_of(name):,}; name the speakers of each split"
            )
        learns = any(p.requires_grad for p in model.head_of(name).parameters())
        if model.parameters_of(name) and not learns:
            raise RecipeError(
                f"task '{name}': head '{entry.head.kind}' learns nothing, the "
                f"{model.parameters_of(name):,} parameters of fusion and upstreams would get no "
                "gradient; use interface 'single_layer' and frozen upstreams, or another head"
            )


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


def _check_aligned(recipe: Recipe, data: TaskData, inputs: Sequence[Inputs]) -> None:
    """Refuse upstreams that give an utterance another duration, while nothing is begun."""
    rates = [one.spec.frame_rate for one in inputs]
    for members in data.splits.values():
        lengths = [torch.tensor([one.frames(u) for u in members]) for one in inputs]
        try:
            common_lengths(lengths, rates)
        except ShapeError as error:
            names = ", ".join(recipe.upstreams)
            raise ShapeError(f"upstreams {names} cannot be aligned: {error}") from error


def _check_targets(name: str, model: FusionModel, data: TaskData, inputs: Sequence[Inputs]) -> int:
    """Training targets that need more frames than there are; more than 1 % is an error."""
    head, rate = model.head_of(name), model.fusion_of(name).frame_rate
    if not isinstance(head, CTCHead):
        return 0
    grid = max(one.spec.frame_rate for one in inputs)
    finest = [one for one in inputs if one.spec.frame_rate == grid]
    utterances = data.splits["train"]
    frames = torch.tensor([min(one.frames(u) for one in finest) for u in utterances])
    frames *= round(rate / grid)  # a merge in time gives several for each
    targets = data.task.targets(utterances)
    rows = zip(targets.ids.tolist(), targets.lengths.tolist(), strict=True)
    needed = torch.tensor([frames_needed(ids[:size]) for ids, size in rows])
    short = int((needed > head.lengths(frames)).sum())
    if short > 0.01 * len(utterances):
        raise DataError(
            f"task '{name}': {short} of {len(utterances)} training texts are longer than their "
            f"frames at {rate / head.join:g} Hz, CTC cannot learn them; use a finer upstream, "
            "join fewer frames, or mend the texts"
        )
    return short


def _fit_interfaces(model: FusionModel, tasks: Mapping[str, TaskData], inputs: AllInputs) -> None:
    """Fit what is fitted without steps to the training utterances of the tasks that read it."""

    def batches(readers: Sequence[str]) -> Iterator[list[LayerStack]]:
        for task in readers:
            for members in passes(model, tasks[task].splits["train"]):
                yield model.stacks([one.batch(members) for one in inputs[task]])

    for name in model.fusions:
        readers = list(tasks) if name == SHARED else [name]
        fit_interfaces(model.fusion_of(readers[0]), partial(batches, readers))


def _fit(
    recipe: Recipe,
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    inputs: AllInputs,
    run: Run,
    progress: Progress | None,
) -> None:
    training = recipe.training
    sources = {
        name: Source(
            data.splits["train"],
            recipe.tasks[name].batch_seconds or training.batch_seconds,
            None if recipe.tasks[name].batch_seconds else training.batch_utterances,
            recipe.tasks[name].crop_seconds,
        )
        for name, data in tasks.items()
        if model.parameters_of(name)
    }
    sizes = {name: source.batches for name, source in sources.items()}
    schedule = make_schedule(training.interleave, sizes, recipe.seed)
    taught = {name: sources[name] for name in schedule.tasks}
    resume = run.folder / "checkpoints" / "last.ckpt"
    stop, log = Stop(resume), LongCSV(run.folder / "log.csv")
    stream = Stream(
        lambda: stop.between(
            draw_batches(taught, schedule.turns(), recipe.seed), training.accumulate
        ),
        lambda task, members, number: load_batch(
            tasks[task],
            inputs[task],
            members,
            targets=True,
            crop=_crop(recipe, task, number),
        ),
        training.steps * training.accumulate,
        schedule,
    )
    every = min(training.evaluate_every or max(1, training.steps // 5), training.steps)
    best, last = (
        ModelCheckpoint(
            run.folder / "checkpoints",
            filename=name if training.average == 1 or name == "last" else "best-{step}",
            monitor="dev/error" if name == "best" else None,
            save_top_k=training.average if name == "best" else 1,
            save_weights_only=name == "best",
            enable_version_counter=False,
        )
        for name in ("best", "last")  # last after best, so that it knows which the best one is
    )
    moved = Moved(run.folder / "checkpoints")
    callbacks: list[Callback] = [
        StepSeed(recipe.seed, training.accumulate),
        OneLine(log),
        stop,
        moved,
        best,
        last,
    ]
    if progress:
        callbacks.append(ShowProgress(progress))
    with quiet():
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_steps=training.steps,
            val_check_interval=every * training.accumulate,
            accumulate_grad_batches=training.accumulate,
            check_val_every_n_epoch=None,
            precision=training.precision,
            gradient_clip_val=training.gradient_clip,
            logger=[log, Events(run.folder, "", "")],
            callbacks=callbacks,
            log_every_n_steps=max(1, training.steps // 100),
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,  # positions that an encoder remembers are in later gradients
        )
        module = FusionTraining(recipe, model, tasks, schedule)
        try:
            trainer.fit(
                module,
                train_dataloaders=stream,
                val_dataloaders=_Development(model, tasks, inputs),
                ckpt_path=resume if resume.is_file() else None,
            )
        except SystemExit as stopped:  # what Lightning makes of KeyboardInterrupt
            raise KeyboardInterrupt from stopped
        if stop.asked:  # while the last step was taken or scored
            raise KeyboardInterrupt
        if training.keep == "best" and best.best_model_path:
            module.load_state_dict(averaged([Path(path) for path in best.best_k_models]))
    model.cpu()


def _crop(recipe: Recipe, task: str, number: int) -> tuple[float, int] | None:
    """How long and from which seed a task's batch is cropped, the same after a stop."""
    seconds = recipe.tasks[task].crop_seconds
    return (seconds, seed_for(recipe.seed, "crop", str(number))) if seconds else None


def averaged(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of their weights, in double precision; what is a count, the largest."""
    states = [
        torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        for path in checkpoints
    ]
    if len(states) == 1:
        return dict(states[0])
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else torch.stack([state[name] for state in states]).amax(0)
        for name, tensor in states[0].items()
    }


class FusionTraining(LightningModule):
    """What Lightning drives: loss of a batch, optimiser, scores on the development split."""

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


class _Development:
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
