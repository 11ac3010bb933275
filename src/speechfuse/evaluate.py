"""Score a trained run on its development and test splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.contracts import Decides, Row, Searches, Task, Upstream
from speechfuse.data.batching import by_duration
from speechfuse.errors import RunError, damage
from speechfuse.extract import Before
from speechfuse.inputs import Inputs, find_inputs
from speechfuse.measure import best_device
from speechfuse.metrics import Evidence, with_interval
from speechfuse.model import FusionModel
from speechfuse.ops import moved
from speechfuse.recipe import Recipe
from speechfuse.reduction import with_reduction
from speechfuse.taskdata import TaskData, load_tasks
from speechfuse.types import Progress, Utterance

SPLITS = ("dev", "test")
SCORED = {*SPLITS, "texts_cut", "thresholds"}  # parts of metrics that are made anew
BATCH_SECONDS = 120.0  # audio in one pass over stored layers
UPSTREAM_SECONDS = 60.0  # in one that runs a tuned upstream, too


def evaluate_run(
    run: Run,
    *,
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    inputs: Mapping[str, Sequence[Inputs]],
    about: Mapping[str, Any],
    splits: Sequence[str] = SPLITS,
) -> dict[str, Any]:
    """Predict dev and test, write predictions and metrics.json, return the metrics.

    splits: of these; metrics have nothing of another one.
    """
    metrics, tables = _score(model, tasks, inputs, about, splits)
    for (split, name), rows in tables.items():
        run.save_table(split, name, rows)
    run.save_metrics(metrics)
    return metrics


def _score(
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    inputs: Mapping[str, Sequence[Inputs]],
    about: Mapping[str, Any],
    splits: Sequence[str] = SPLITS,
) -> tuple[dict[str, Any], dict[tuple[str, str], list[Row]]]:
    metrics: dict[str, Any] = {**about, "texts_cut": {"dev": {}, "test": {}}, "dev": {}, "test": {}}
    tables = {}
    for name, data in tasks.items():
        for split in splits:
            rows = tables[split, name] = predicted_table(model, data, inputs[name], split)
            if cut := sum(row.get("cut") == "yes" for row in rows):
                metrics["texts_cut"][split][name] = cut
            metrics[split][name] = {
                metric: asdict(with_interval(evidence))
                for metric, evidence in data.task.score(rows).items()
            }
        if isinstance(data.task, Decides) and {*splits} == {*SPLITS}:
            decision = data.task.decision(tables["dev", name], tables["test", name])
            metrics.setdefault("thresholds", {})[name] = decision.to_dict()
    return metrics, tables


def evaluate_again(
    folder: Path,
    progress: Progress | None = None,
    beam_size: int | None = None,
    before: Before | None = None,
) -> dict[str, Any]:
    """Score a finished run anew, from its weights and the stored layers or the audio.

    beam_size: of the search for texts, in place of the run's; the run's files then stay as they
    are. before: called with what is to be extracted, and may refuse it.

    Raises:
        RunError: no run there, not trained yet, or nothing in it searches for texts.
    """
    run, model, tasks, inputs = open_run(folder, progress, before)
    about = {k: v for k, v in run.metrics().items() if k not in SCORED}
    if beam_size is None:
        return evaluate_run(run, model=model, tasks=tasks, inputs=inputs, about=about)
    searching = {name: head for name, head in model.heads.items() if isinstance(head, Searches)}
    if not searching:
        raise RunError(
            f"{folder} has no task that searches for a text ({', '.join(tasks)}); "
            "leave the beam out"
        )
    for head in searching.values():
        head.search_with(beam_size)
    asked = {name: tasks[name] for name in tasks if name in searching}
    return _score(model, asked, inputs, {**about, "beam_size": beam_size})[0]


def open_run(
    folder: Path, progress: Progress | None = None, before: Before | None = None
) -> tuple[Run, FusionModel, dict[str, TaskData], dict[str, list[Inputs]]]:
    """A trained run with its model, its tasks, and what the model reads of them.

    before: called with what is to be extracted, and may refuse it.

    Raises:
        RunError: no run there, not trained yet, or its corpora or upstreams have changed.
    """
    run = Run(folder)
    recipe = run.recipe()
    run.check(recipe)
    tasks = load_tasks(recipe, run.tasks(), progress)
    run.check_data({name: data.marks() for name, data in tasks.items()})
    parts = {name: data.task for name, data in tasks.items()}
    model = load_model(run, recipe, parts, stored=True)
    return run, model, tasks, find_inputs(recipe, tasks, progress, before)


def load_model(
    run: Run, recipe: Recipe, tasks: Mapping[str, Task], *, stored: bool = False
) -> FusionModel:
    """A run's trained part, in evaluation mode.

    stored: it reads what the recipe stores, which may be less than all layers of all upstreams.
    """
    recipe = recipe if stored else with_reduction(recipe, "none")
    model = build.build_model(recipe, build.stack_specs(recipe), tasks)
    run.load_model(model)
    return model.eval()


def passes(model: FusionModel, utterances: Sequence[Utterance]) -> Iterator[list[Utterance]]:
    """All utterances, those together that are predicted in one pass."""
    upstreams = [part for part in model.upstreams if isinstance(part, Upstream)]
    silence = max((upstream.plan.silence for upstream in upstreams), default=0.0)
    return by_duration(
        utterances, UPSTREAM_SECONDS if upstreams else BATCH_SECONDS, silence=silence
    )


@torch.no_grad()
def predicted_table(
    model: FusionModel, data: TaskData, inputs: Sequence[Inputs], split: str
) -> list[Row]:
    """References and predictions of one split."""
    was_training = model.training
    model.eval()
    device = best_device() if model.upstreams else torch.device("cpu")
    model.to(device)
    utterances: list[Utterance] = []
    predictions: list[Any] = []
    for batch in passes(model, data.splits[split]):
        utterances += batch
        read = moved([one.batch(batch) for one in inputs], device)
        predictions += moved(model.predict(read, data.name), torch.device("cpu"))
    model.train(was_training)
    return data.task.table(utterances, predictions, data.trials[split])


def evidence_of(run: Run, split: str) -> dict[str, dict[str, Evidence]]:
    """What a run's kept predictions are worth, by task and metric."""
    found = {}
    for name, entry in run.recipe().tasks.items():
        rows = run.table(split, name)
        with damage(f"predictions/{split}_{name}.tsv in {run.folder}", RunError, "evaluate again"):
            found[name] = build.build_task(name, entry).score(rows)
    return found
