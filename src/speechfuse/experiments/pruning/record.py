"""What pruning has found, as the data of prune.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechfuse import build
from speechfuse.checkpoint import Run, write_text
from speechfuse.errors import RunError, damage
from speechfuse.experiments.compare import compare
from speechfuse.experiments.pruning.cuts import Cut, Encoder
from speechfuse.experiments.pruning.trial import Bench, Trial, system

FILE = "prune.json"


def known_about(out: Path, work: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier call with these settings has found.

    Raises:
        RunError: another run is there, or one that was pruned in another way.
    """
    for folder in (out, work):
        path = folder / FILE
        if not path.is_file():
            continue
        with damage(path, RunError, "delete its folder and prune again"):
            about = dict(json.loads(path.read_text()))
            changed = [name for name, value in settings.items() if about[name] != value]
        if not changed:
            return about
        if folder == out:
            raise RunError(
                f"{out} was pruned with other settings (differs in {', '.join(changed)}); choose "
                "another --out or delete this one"
            )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunError(f"{out} is there already; choose another --out or delete this one")
    return None


def write_about(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Keep it in a folder, and give it back as it will be read."""
    text = json.dumps(about, indent=2, ensure_ascii=False)
    write_text(folder / FILE, f"{text}\n")
    return dict(json.loads(text))


def told(
    bench: Bench, encoders: Mapping[str, Encoder], trial: Trial, kept: bool | None
) -> dict[str, Any]:
    """One line of what was tried; kept is None for nothing but more training."""
    recipe = Run(trial.folder).recipe()
    plans = [build.build_upstream(recipe, name).plan for name in recipe.upstreams]
    primary = {n: build.build_task(n, e).primary for n, e in bench.recipe.tasks.items()}
    return {
        "what": "nothing removed" if kept is None else trial.cut.text(encoders),
        "steps": trial.steps,
        "good_enough": kept,
        "encoder_parameters": sum(plan.parameters for plan in plans),
        "macs_per_second": sum(plan.macs_per_second for plan in plans),
        "tasks": {
            task: {
                "metric": primary[task],
                "value": asdict(value),
                "worse_by": asdict(trial.losses[task]),
            }
            for task, value in trial.scores.items()
        },
    }


def compared(before: Run, after: Run) -> list[dict[str, Any]]:
    """On the test set, paired, in every metric."""
    systems = [system("before", before), system("after", after)]
    return [one.to_dict() for one in compare(systems)]


def costs(before: Run, after: Run, encoders: Mapping[str, Encoder], cut: Cut) -> dict[str, Any]:
    """Blocks and parameters of each encoder, and what is trained."""
    recipe = after.recipe()
    found = []
    for name, encoder in encoders.items():
        layers = cut.layers.get(name)
        left = build.build_upstream(recipe, name).plan.parameters if layers else 0
        found.append(
            {
                "name": name,
                "layers": list(layers) if layers else [],
                "blocks": [encoder.layers[-1], layers[-1] if layers else None],
                "parameters": [encoder.plan.parameters, left],
            }
        )
    trained = [run.metrics()["all_parameters"] for run in (before, after)]
    return {"encoders": found, "trained_parameters": trained}
