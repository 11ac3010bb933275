"""A package's README.md: how it is used, and its numbers in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechfuse.metrics import full_name
from speechfuse.recipe import Recipe
from speechfuse.resources import markdown_template
from speechfuse.types import Metric


def readme(report: Mapping[str, Any], recipe: Recipe) -> str:
    """report: as it is written beside it."""
    rows = scored(report)
    return markdown_template("export.md.j2").render(report=report, recipe=recipe, rows=rows)


def scored(report: Mapping[str, Any]) -> list[tuple[str, str, str, Metric, Metric]]:
    """Task, split, metric, and what float32 and 8 bits have; nothing where it was not measured."""
    scores = report.get("scores", {})
    return [
        (
            task,
            split,
            full_name(metric),
            *(Metric(**scores[name][split][task][metric]) for name in ("onnx", "int8")),
        )
        for split, tasks in scores.get("onnx", {}).items()
        for task, metrics in tasks.items()
        for metric in metrics
    ]
