"""What a package scores on the development and test sets of its run's corpora."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from speechfuse.clips import read_batch
from speechfuse.contracts import Task, Upstream
from speechfuse.export.run import Package
from speechfuse.metrics import with_interval
from speechfuse.taskdata import TaskData
from speechfuse.types import Progress, Utterance

Scores = dict[str, dict[str, dict[str, Any]]]  # by split, task and metric


def scores(
    packages: Mapping[str, Package],
    data: Mapping[str, TaskData],
    upstream: Upstream,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """By package; all hear an utterance once for all tasks that have it.

    upstream: whose shortest clip is the longest.
    """
    found: dict[str, Scores] = {name: {} for name in packages}
    for split in ("dev", "test"):
        heard = _clips(data, split)
        said: dict[str, dict[str, dict[str, Any]]] = {
            name: {task: {} for task in data} for name in packages
        }
        for done, (noise, utterance, tasks) in enumerate(heard.values(), 1):
            samples = read_batch([utterance], upstream, noise).samples[0].numpy()
            for name, package in packages.items():
                for task, prediction in package.predict(samples, tasks).items():
                    said[name][task][utterance.id] = prediction
            if progress:
                progress(f"clips of {split}", done, len(heard))
        for name in packages:
            found[name][split] = {
                task: _scored(one, split, said[name][task]) for task, one in data.items()
            }
    return found


def _clips(
    data: Mapping[str, TaskData], split: str
) -> dict[str, tuple[float | None, Utterance, list[str]]]:
    clips: dict[str, tuple[float | None, Utterance, list[str]]] = {}
    for task, one in data.items():
        for u in one.splits[split]:
            key = f"{one.noise_snr} {u.id} {u.audio} {u.start} {u.duration}"
            clips.setdefault(key, (one.noise_snr, u, []))[2].append(task)
    return clips


def _scored(data: TaskData, split: str, said: Mapping[str, Any]) -> dict[str, Any]:
    utterances = data.splits[split]
    predictions = [as_predicted(data.task, said[u.id]) for u in utterances]
    rows = data.task.table(utterances, predictions, data.trials[split])
    return {name: asdict(with_interval(one)) for name, one in data.task.score(rows).items()}


def as_predicted(task: Task, prediction: Any) -> Any:
    """What a head would have said."""
    if task.reads == "class":
        return int(prediction.argmax())
    if task.reads == "classes":
        sizes: Any = task.head_options()["slot_sizes"]
        return [int(one.argmax()) for one in torch.from_numpy(prediction).split(sizes)]
    if task.reads == "vector":
        return torch.from_numpy(prediction)
    return prediction
