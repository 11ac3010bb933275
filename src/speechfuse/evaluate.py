"""Score a trained run on its development and test splits, from the stored layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from speechfuse import build
from speechfuse.cache.store import Store
from speechfuse.checkpoint import Run
from speechfuse.contracts import Row, Task
from speechfuse.data.batching import by_duration
from speechfuse.extract import fill_stores
from speechfuse.metrics import Evidence, with_interval
from speechfuse.model import FusionModel
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData, load_tasks
from speechfuse.types import Progress, Utterance

BATCH_SECONDS = 120.0  # audio in one pass


def evaluate_run(
    run: Run,
    *,
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    stores: Mapping[str, Sequence[Store]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Predict dev and test, write predictions and metrics.json, return the metrics."""
    metrics: dict[str, Any] = {**about, "dev": {}, "test": {}}
    for name, data in tasks.items():
        for split in ("dev", "test"):
            rows = predicted_table(model, data, stores[name], split)
            run.save_table(split, name, rows)
            metrics[split][name] = {
                metric: asdict(with_interval(evidence))
                for metric, evidence in data.task.score(rows).items()
            }
    run.save_metrics(metrics)
    return metrics


def evaluate_again(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Score a finished run anew, from its weights and the stored layers.

    Raises:
        RunError: no run there, or not trained yet.
    """
    run, model, tasks, stores = open_run(folder, progress)
    about = {k: v for k, v in run.metrics().items() if k not in ("dev", "test")}
    return evaluate_run(run, model=model, tasks=tasks, stores=stores, about=about)


def open_run(
    folder: Path, progress: Progress | None = None
) -> tuple[Run, FusionModel, dict[str, TaskData], dict[str, list[Store]]]:
    """A trained run with its model, tasks and stored layers.

    Raises:
        RunError: no run there, not trained yet, or its corpora or upstreams have changed.
    """
    run = Run(folder)
    recipe = run.recipe()
    run.check(recipe)
    tasks = load_tasks(recipe, run.tasks(), progress)
    run.check_data({name: data.marks() for name, data in tasks.items()})
    model = load_model(run, recipe, {name: data.task for name, data in tasks.items()})
    return run, model, tasks, fill_stores(recipe, tasks, progress)


def load_model(run: Run, recipe: Recipe, tasks: Mapping[str, Task]) -> FusionModel:
    """A run's trained part, in evaluation mode."""
    model = build.build_model(recipe, build.stack_specs(recipe), tasks)
    run.load_model(model)
    return model.eval()


@torch.no_grad()
def predicted_table(
    model: FusionModel, data: TaskData, stores: Sequence[Store], split: str
) -> list[Row]:
    """References and predictions of one split."""
    was_training = model.training
    model.eval()
    utterances: list[Utterance] = []
    predictions: list[Any] = []
    for batch in by_duration(data.splits[split], BATCH_SECONDS):
        utterances += batch
        predictions += model.predict([store.batch(batch) for store in stores], data.name)
    model.train(was_training)
    return data.task.table(utterances, predictions, data.trials[split])


def evidence_of(run: Run, split: str) -> dict[str, dict[str, Evidence]]:
    """What a run's kept predictions are worth, by task and metric."""
    return {
        name: build.build_task(name, entry).score(run.table(split, name))
        for name, entry in run.recipe().tasks.items()
    }
