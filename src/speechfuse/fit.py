"""The steps of a run with Lightning, from where it stopped to the weights that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from speechfuse import build
from speechfuse.callbacks import (
    Events,
    LongCSV,
    Moved,
    OneLine,
    ShowProgress,
    StepSeed,
    Stop,
    WholeCheckpoints,
    quiet,
)
from speechfuse.checkpoint import Run
from speechfuse.conflict import LogConflict
from speechfuse.data.schedule import make_schedule
from speechfuse.data.stream import Source, Stream, draw_batches
from speechfuse.errors import RunError, damage
from speechfuse.group import joined
from speechfuse.launch import run_together
from speechfuse.model import FusionModel
from speechfuse.ops import seed_for
from speechfuse.placement import trainer_options
from speechfuse.ranks import Rank
from speechfuse.recipe import Recipe
from speechfuse.steps import AllInputs, Development, FusionTraining, load_batch
from speechfuse.taskdata import TaskData
from speechfuse.types import Batch, Progress, Utterance


def fit(
    recipe: Recipe,
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    inputs: AllInputs,
    run: Run,
    progress: Progress | None,
    rank: Rank | None = None,
) -> None:
    """Take the steps of a recipe, or those left; the model has the weights that are kept.

    rank: of this process among those that train together.
    """
    rank = rank or Rank()
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
    schedule = make_schedule(training.interleave, sizes, recipe.seed, training.turns)
    taught = {name: sources[name] for name in schedule.tasks}
    resume = run.folder / "checkpoints" / "last.ckpt"
    if resume.is_file():
        _checkpoint(resume)
    stop = Stop(resume, rank.asked, accumulate=training.accumulate, launched=rank.launched)
    log = LongCSV(run.folder / "log.csv")
    stream = Stream(
        lambda: draw_batches(taught, schedule.turns(), recipe.seed),
        lambda task, members, number: load_batch(
            tasks[task],
            inputs[task],
            members,
            targets=True,
            crop=_crop(recipe, task, number),
            rank=rank,
        ),
        training.steps * training.accumulate,
        schedule,
        before=stop.before,
        workers=training.workers,
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
        StepSeed(recipe.seed, training.accumulate, rank.number),
        OneLine(log),
        stop,
        moved,
        best,
        last,
    ]
    if training.log_conflict and len(taught) > 1 and rank.number == 0:
        load = partial(_probe, recipe, tasks, inputs)
        callbacks.append(LogConflict(training.log_conflict, taught, load, recipe.seed))
    if progress and rank.number == 0:
        callbacks.append(ShowProgress(progress))
    with quiet():
        trainer = Trainer(
            **trainer_options(rank, training.strategy),
            max_steps=training.steps,
            val_check_interval=every * training.accumulate,
            accumulate_grad_batches=training.accumulate,
            check_val_every_n_epoch=None,
            precision=training.precision,
            gradient_clip_val=training.gradient_clip,
            logger=[log, Events(run.folder, "", "")],
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            log_every_n_steps=max(1, training.steps // 100),
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,  # positions that an encoder remembers are in later gradients
        )
        sharded = training.strategy == "fsdp" and rank.count > 1
        module = FusionTraining(recipe, deepcopy(model) if sharded else model, tasks, schedule)
        try:
            trainer.fit(
                module,
                train_dataloaders=stream,
                val_dataloaders=Development(model, tasks, inputs, rank),
                ckpt_path=resume if resume.is_file() else None,
                weights_only=True,
            )
        except SystemExit as stopped:  # what Lightning makes of KeyboardInterrupt
            raise KeyboardInterrupt from stopped
        if stop.asked:  # while the last step was taken or scored
            raise KeyboardInterrupt
        if training.keep == "best" and best.best_model_path:
            kept = averaged([Path(path) for path in best.best_k_models])
        elif sharded:
            kept = trainer.strategy.lightning_module_state_dict()  # of the first process alone
        else:
            kept = {}
    model.cpu()
    if kept:
        weights = {name.removeprefix("model."): t for name, t in kept.items()}
        folder = run.folder / "checkpoints"
        with damage(folder, RunError, "delete it and train again, from the start"):
            model.load_state_dict(weights)


def fit_together(
    recipe: Recipe,
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    inputs: AllInputs,
    run: Run,
    progress: Progress | None,
) -> None:
    """The same in as many processes as the recipe asks for."""
    arguments = (recipe, model.state_dict(), tasks, inputs, run.folder)
    run_together(_fit_part, arguments, recipe.training.devices or 1, progress)
    run.load_model(model)


def _fit_part(
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    tasks: Mapping[str, TaskData],
    inputs: AllInputs,
    folder: Path,
    progress: Progress,
    rank: Rank,
) -> None:
    """In one of them; the model is built anew, since parts of transformers cannot be sent."""
    names = {name: data.task for name, data in tasks.items()}
    model = build.build_model(recipe, build.stack_specs(recipe), names)
    model.load_state_dict(weights)
    run = Run(folder)
    with joined(rank):
        fit(recipe, model, tasks, inputs, run, progress, rank)
    if rank.number == 0:
        run.save_model(model)


def _crop(recipe: Recipe, task: str, number: int) -> tuple[float, int] | None:
    """How long and from which seed a task's batch is cropped, the same after a stop."""
    seconds = recipe.tasks[task].crop_seconds
    return (seconds, seed_for(recipe.seed, "crop", str(number))) if seconds else None


def _probe(
    recipe: Recipe,
    tasks: Mapping[str, TaskData],
    inputs: AllInputs,
    task: str,
    members: Sequence[Utterance],
) -> Batch:
    """What a task's gradient is looked at with: whole utterances, or their first stretch."""
    seconds = recipe.tasks[task].crop_seconds
    crop = (seconds, recipe.seed) if seconds else None
    return load_batch(tasks[task], inputs[task], members, targets=True, crop=crop)


def averaged(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of their weights, in double precision; what is a count, the largest."""
    states = [_checkpoint(path)["state_dict"] for path in checkpoints]
    if len(states) == 1:
        return dict(states[0])
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else torch.stack([state[name] for state in states]).amax(0)
        for name, tensor in states[0].items()
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    """What Lightning keeps.

    Raises:
        RunError: it is damaged.
    """
    with damage(path, RunError, "delete the folder it is in and train again, from the start"):
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if not found["state_dict"]:
            raise ValueError("it holds no weights")
    return found
