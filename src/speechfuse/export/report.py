"""A package's README.md: how it is used, and its numbers in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechfuse.metrics import full_name
from speechfuse.recipe import Recipe
from speechfuse.resources import markdown_template


def readme(report: Mapping[str, Any], recipe: Recipe) -> str:
    """report: as it is written beside it."""
    scores = report.get("scores", {})
    rows = [
        (task, split, full_name(metric), *(one[split][task][metric] for one in scores.values()))
        for split, tasks in scores.get("onnx", {}).items()
        for task, metrics in tasks.items()
        for metric in metrics
    ]
    return markdown_template("export.md.j2").render(report=report, recipe=recipe, rows=rows)
