"""Score a trained run on its development and test splits, from the stored layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from speechfuse import build
from speechfuse.cache.store import Store
from speechfuse.checkpoint import Run
from speechfuse.contracts import Row
from speechfuse.data.batching import by_duration
from speechfuse.metrics import Evidence, with_interval
from speechfuse.model import FusionModel
from speechfuse.taskdata import TaskData
from speechfuse.types import Utterance

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
