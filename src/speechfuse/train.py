"""Train fusion, heads and tuned upstreams with Lightning: one batch, one task."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from speechfuse import build
from speechfuse.alignment import common_lengths
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RecipeError, ShapeError
from speechfuse.evaluate import SPLITS, evaluate_run, passes
from speechfuse.extract import Before
from speechfuse.fit import fit, fit_together
from speechfuse.fusion import fit_interfaces
from speechfuse.group import check_places, joined
from speechfuse.heads.ctc_head import CTCHead, frames_needed
from speechfuse.heads.text import Text
from speechfuse.inputs import Inputs, find_inputs
from speechfuse.model import SHARED, FusionModel
from speechfuse.ranks import Rank
from speechfuse.recipe import Recipe
from speechfuse.steps import AllInputs
from speechfuse.taskdata import TaskData, load_tasks
from speechfuse.types import LayerStack, Progress


def train_run(
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
    rank: Rank | None = None,
    *,
    start: Callable[[FusionModel], None] | None = None,
    splits: Sequence[str] = SPLITS,
    before: Before | None = None,
) -> dict[str, Any]:
    """Prepare, extract, train and evaluate; goes on where an earlier call stopped.

    rank: of this process among those that torchrun or srun began. The first one writes the folder
    and returns its metrics, the others none. start: puts weights into the model that it begins
    with. splits: that are scored. before: called with what is to be extracted, and may refuse it.

    Raises:
        SpeechFuseError: whatever is wrong with recipe, data or upstreams, before any training.
        KeyboardInterrupt: Ctrl-C or SIGTERM; training ends its step first and keeps it.
    """
    run, rank = Run(folder), rank or Rank()
    run.check(recipe)
    if run.finished:
        return run.metrics()
    check_places(recipe.training, rank)
    try:
        with joined(rank):
            model, tasks, inputs, about = _trained(recipe, run, progress, rank, start, before)
        if rank.number > 0:
            return {}
        return evaluate_run(
            run, model=model, tasks=tasks, inputs=inputs, about=about, splits=splits
        )
    finally:
        run.end()


def _trained(
    recipe: Recipe,
    run: Run,
    progress: Progress | None,
    rank: Rank,
    start: Callable[[FusionModel], None] | None,
    before: Before | None,
) -> tuple[FusionModel, dict[str, TaskData], dict[str, list[Inputs]], dict[str, Any]]:
    """A model with the weights that are kept, its tasks, what it reads of them, and a summary."""
    with rank.first(rank.number == 0):  # a corpus is made once
        tasks = load_tasks(recipe, progress=progress)
    marks = {name: data.marks() for name, data in tasks.items()}
    run.check_data(marks)
    if rank.number == 0 and start is None:  # of a trial, the run that it starts from has said it
        _warn_of_speakers(recipe, tasks)
    model = build.build_model(
        recipe, build.stack_specs(recipe), {name: data.task for name, data in tasks.items()}
    )
    _check_trained(recipe, model)
    inputs = find_inputs(recipe, tasks, progress, before, rank)
    for data in tasks.values():
        _check_aligned(recipe, data, inputs[data.name])
    short = {name: _check_targets(name, model, tasks[name], inputs[name]) for name in tasks}
    with rank.first(rank.number == 0):
        if rank.number == 0:
            run.begin(recipe)
            run.save_tasks({name: data.task.state() for name, data in tasks.items()}, marks)
            seen = [one for data in tasks.values() for one in data.seen]
            run.save_seen(seen, {name: data.about for name, data in tasks.items()})
        run.check_shared()
    began = time.monotonic()
    if not (run.folder / "checkpoints" / "last.ckpt").is_file():  # that holds what was fitted
        if start:
            start(model)
        _fit_interfaces(model, tasks, inputs)
    if recipe.training.steps and any(p.requires_grad for p in model.parameters()):
        if rank.count == 1 and (recipe.training.devices or 1) > 1:
            fit_together(recipe, model, tasks, inputs, run, progress)
        else:
            fit(recipe, model, tasks, inputs, run, progress, rank)
    if rank.number == 0:
        run.save_model(model)
    about = {
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began, 1),
        "parameters": {name: model.parameters_of(name) for name in tasks},
        "all_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "targets_longer_than_frames": {name: count for name, count in short.items() if count},
        "pseudo_labels": {
            name: [origin.text() for origin in data.origins]
            for name, data in tasks.items()
            if data.origins
        },
    }
    return model, tasks, inputs, about


def _warn_of_speakers(recipe: Recipe, tasks: Mapping[str, TaskData]) -> None:
    """One line for tasks that share a finding; few who are named are no finding."""
    found: dict[str, list[str]] = {}
    for name, data in tasks.items():
        named = recipe.tasks[name].split.dev_speakers
        for line in [*data.about.warnings(), *([] if named else data.about.few())]:
            found.setdefault(line, []).append(name)
    for line, names in found.items():
        logging.getLogger(__name__).warning("warning: %s: %s", " and ".join(names), line)


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
    if isinstance(head, Text):
        _check_lengths(name, head, data)
    if not isinstance(head, CTCHead):
        return 0
    grid = max(one.spec.frame_rate for one in inputs)
    finest = [one for one in inputs if one.spec.frame_rate == grid]
    utterances = data.splits["train"]
    frames = torch.tensor([min(one.frames(u) for one in finest) for u in utterances])
    frames *= round(rate / grid)  # a merge in time gives several for each
    if model.reader is not None:
        rate = model.reader.frame_rate
        frames = -(-frames // model.reader.context.join)
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


def _check_lengths(name: str, head: Text, data: TaskData) -> None:
    """Refuse a training text that is longer than what is ever written."""
    utterances = data.splits["train"]
    lengths = data.task.targets(utterances).lengths
    if int(lengths.max()) > head.max_tokens:
        longest = utterances[int(lengths.argmax())]
        raise DataError(
            f"task '{name}': the text of {longest.id} has {int(lengths.max())} tokens, the limit "
            f"is max_tokens={head.max_tokens}; raise it, or leave it out to have it set by the data"
        )


def _fit_interfaces(model: FusionModel, tasks: Mapping[str, TaskData], inputs: AllInputs) -> None:
    """Fit what is fitted without steps to the training utterances of the tasks that read it."""

    def batches(readers: Sequence[str]) -> Iterator[list[LayerStack]]:
        for task in readers:
            for members in passes(model, tasks[task].splits["train"]):
                yield model.stacks([one.batch(members) for one in inputs[task]])

    for name in model.fusions:
        readers = list(tasks) if name == SHARED else [name]
        fit_interfaces(model.fusion_of(readers[0]), partial(batches, readers))
