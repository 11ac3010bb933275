"""Known ways in which a sweep goes wrong, found in its run folders: the number and a remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from speechfuse import build, catalog
from speechfuse.checkpoint import Run
from speechfuse.contracts import Interface, ShowsLayers, Task
from speechfuse.experiments.alpha.divergence import evenness
from speechfuse.experiments.alpha.flags import UNIFORM, flags_of
from speechfuse.experiments.alpha.sample import open_sample
from speechfuse.experiments.failures import Failure
from speechfuse.experiments.sweep import Cell, Split, SweepFile, Tables
from speechfuse.metrics import full_name, paired_difference
from speechfuse.model import SHARED
from speechfuse.recipe import Recipe

LOOKED_AT = 24  # held-out utterances of each corpus, for alpha
RISING = 0.01  # of a score, between the last two looks at development data
SILENT = 0.99  # share of clips without a text


def diagnose(sweep: SweepFile, done: Sequence[Cell], split: Split = "test") -> list[Failure]:
    """What is found, of a run under the name of its row; what is of whole rows comes last."""
    found = []
    for cell in done:
        place = [cell.row, cell.condition, f"fold {cell.fold}" if cell.fold else ""]
        where = ", ".join([*filter(None, place), f"seed {cell.seed}"])
        run = Run(cell.folder)
        for name, entry in cell.recipe.tasks.items():
            task = build.build_task(name, entry)
            ours = [*_uniform(cell, name), *_rising(run, name, task), *_silent(run, name, task)]
            found += [failure.of(f"{where}, {name}") for failure in ours]
        found += [failure.of(f"{where}, {task}") for task, failure in _alpha(cell, done[0])]
    return [*found, *_moved(done), *_worse(sweep, done, split)]


def _alpha(cell: Cell, first: Cell) -> Iterator[tuple[str, Failure]]:
    """By task: layers that no prompt chooses, in runs of the first condition, fold and seed.

    Looked at where each task's head reads, on held-out utterances.
    """
    place = (cell.condition, cell.fold, cell.seed)
    context = cell.recipe.context
    if context is None or place != (first.condition, first.fold, first.seed):
        return
    if not issubclass(catalog.find("interface", context.interface.kind), ShowsLayers):
        return
    if Run(cell.folder).moved(build.identities(cell.recipe)):
        return  # it no longer has what it reads
    yield from flags_of(open_sample(cell.folder, LOOKED_AT))


def _moved(done: Sequence[Cell]) -> Iterator[Failure]:
    """Upstreams whose weights changed under runs that take them for frozen."""
    moved = Counter(
        (name, what)
        for cell in done
        for name, changed in Run(cell.folder).moved(build.identities(cell.recipe)).items()
        for what in changed
    )
    for (name, what), count in moved.items():
        yield Failure(
            "frozen weights that moved",
            f"frozen weights that moved: {count} of {len(done)} runs were made with another "
            f"upstream '{name}' than is there now ({what} differs); put it back, or train all into "
            "another folder",
        )


def _uniform(cell: Cell, task: str) -> Iterator[Failure]:
    """Interfaces that have learned next to nothing about layers."""
    for name, weights in _learned_weights(cell, task):
        count = len(weights)
        share = float(evenness(weights.double().movedim(0, -1)).mean())  # of all features
        if share > UNIFORM:
            of = f" of {name}" if name else ""
            yield Failure(
                "layer weights still uniform",
                f"layer weights{of} are still uniform, entropy {100 * share:.1f} % of that of "
                f"{count} equal ones; raise training.layer_rate from "
                f"{cell.recipe.training.layer_rate:g}, or steps",
            )


def _learned_weights(cell: Cell, task: str) -> Iterator[tuple[str, Tensor]]:
    """What a task's interfaces have learned of several layers, (L,) or (L, D), and of what."""
    recipe, key, readers = cell.recipe, SHARED, list(cell.recipe.tasks)
    if recipe.fusion.per_task:
        key, readers = task, [task]
    with torch.device("meta"):
        fusion = build.build_fusion(recipe, build.stack_specs(recipe), readers)
    start = f"fusions.{key}."
    saved = load_file(cell.folder / "model.safetensors")
    ours = {n.removeprefix(start): t for n, t in saved.items() if n.startswith(start)}
    fusion.load_state_dict(ours, assign=True)
    parts = [part for part in fusion.modules() if isinstance(part, Interface)]
    models = [*recipe.upstreams] if len(parts) > 1 else [""]
    for model, part in zip(models, parts, strict=True):
        for kind, weights in part.learned_weights().items():
            others = kind in recipe.tasks and kind != task
            if len(weights) > 1 and not others:
                yield ", ".join(filter(None, [model, kind])), weights.detach()


def _rising(run: Run, name: str, task: Task) -> Iterator[Failure]:
    """Training that ended while development scores improved."""
    scores = [v for _, logged, v in run.log() if logged == f"dev/{name}/{task.primary}"]
    if len(scores) < 3:
        return
    gain = (scores[-1] - scores[-2]) * (1 if task.higher_is_better else -1)
    best = max(scores) if task.higher_is_better else min(scores)
    if gain > RISING and scores[-1] == best:
        yield Failure(
            "training that ended early",
            f"development {full_name(task.primary)} went from {100 * scores[-2]:.1f} to "
            f"{100 * scores[-1]:.1f} % at the last look, so training ended early; raise "
            "training.steps",
        )


def _silent(run: Run, name: str, task: Task) -> Iterator[Failure]:
    """Recognition that writes nothing: CTC at its blanks."""
    if task.reads != "tokens":
        return
    rows = run.table("dev", name)
    empty = sum(not row["prediction"].strip() for row in rows) / max(1, len(rows))
    if empty >= SILENT:
        yield Failure(
            "clips without a text",
            f"{100 * empty:.0f} % of the development clips get no text, CTC stays at its blanks; "
            "lower training.learning_rate, or raise training.steps",
        )


def _remedy(recipe: Recipe) -> str:
    """The first thing to try for a fusion that loses, of what it does not have already."""
    if recipe.fusion.normalize == "none":
        return "fusion.normalize=layer_norm"
    if recipe.fusion.merge.options.get("projection") == "after":
        return "fusion.merge.projection=none"
    return "more training.steps, or another training.learning_rate"


def _worse(sweep: SweepFile, done: Sequence[Cell], split: Split) -> Iterator[Failure]:
    """Fused rows below the best row of one of their encoders, by more than the interval allows."""
    tables = Tables(done, split)
    models = {cell.row: [*cell.recipe.upstreams.values()] for cell in done}
    remedies = {cell.row: _remedy(cell.recipe) for cell in done}
    for condition in sweep.conditions:
        rows = [row for row in models if tables.has((row,), condition)]
        evidence = {row: tables.evidence((row,), condition) for row in rows}
        for name, task in tables.tasks.items():
            key, sign = (name, task.primary), 1 if task.higher_is_better else -1
            having = [row for row in rows if key in evidence[row]]
            points = {
                row: sign * sum(e.point() for e in evidence[row][key]) / len(evidence[row][key])
                for row in having
            }
            for row in having:
                parts = [
                    other
                    for other in having
                    if len(models[other]) == 1 and models[other][0] in models[row]
                ]
                if len(models[row]) == 1 or not parts:
                    continue
                best = max(parts, key=lambda part: points[part])
                ours, theirs = evidence[row][key], evidence[best][key]
                if [*ours[0].speakers] != [*theirs[0].speakers]:
                    continue
                loss = paired_difference(ours, theirs)
                if loss.below(0) if sign > 0 else loss.above(0):
                    place = f"{row}, {condition}" if condition else row
                    yield Failure(
                        "fusion worse than one of its encoders",
                        f"{place}, {name}: {full_name(task.primary)} is worse than '{best}' alone, "
                        f"by {100 * abs(loss.value):.1f} points; try {remedies[row]}",
                    )
