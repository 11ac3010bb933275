"""How well the ranking predicted what was trained: rank correlation of probes and test scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechfuse import build
from speechfuse.checkpoint import Run
from speechfuse.errors import RunError
from speechfuse.experiments.probing.file import Variant
from speechfuse.experiments.selecting.file import SelectFile, candidates
from speechfuse.experiments.selecting.run import Layer, Selected
from speechfuse.metrics import full_name
from speechfuse.recipe import Recipe
from speechfuse.types import Table

DRAWS = 2000
LEAST = 4  # cells of a correlation


@dataclass(frozen=True)
class Trained:
    """What was reached on the test split with some layers alone, in one task."""

    layers: tuple[Layer, ...]
    task: str
    scores: dict[str, float]  # by metric, the mean over seeds
    higher_is_better: bool


@dataclass(frozen=True)
class Agreement:
    """Rank correlation over cells, 1 if probes order them as training does."""

    what: str
    cells: int
    rho: float
    low: float
    high: float


def read_trained(selection: SelectFile, folder: Path) -> list[Trained]:
    """Finished runs in or below a folder that read single layers of the candidates.

    Seeds are averaged. A run counts if each of its encoders is a candidate and gives one layer, by
    `layers: [N]` or the interface single_layer, and its task has the name and the corpus here.

    Raises:
        RunError: there is none.
    """
    found: dict[tuple[tuple[Layer, ...], str], list[dict[str, float]]] = {}
    better: dict[str, bool] = {}
    known = candidates(selection)
    for path in sorted(folder.rglob("recipe.yaml")):
        run = Run(path.parent)
        if not run.finished:
            continue
        recipe = run.recipe()
        layers = layers_read(known, recipe, run.upstreams())
        if layers is None:
            continue
        for name, entry in recipe.tasks.items():
            if name in selection.tasks and entry.corpus == selection.entry(name).corpus:
                scores = run.metrics()["test"][name]
                values = {metric: float(one["value"]) for metric, one in scores.items()}
                found.setdefault((layers, name), []).append(values)
                better[name] = build.build_task(name, entry).higher_is_better
    if not found:
        raise RunError(
            f"no finished run below {folder} reads one layer of each of its encoders, which are "
            f"candidates ({', '.join(selection.upstreams)}), for {' or '.join(selection.tasks)}; "
            "train some with the interface single_layer"
        )
    return [
        Trained(
            layers,
            name,
            {metric: float(np.mean([one[metric] for one in several])) for metric in several[0]},
            better[name],
        )
        for (layers, name), several in found.items()
    ]


def layers_read(
    known: Sequence[Variant], recipe: Recipe, identities: Mapping[str, Mapping[str, str]]
) -> tuple[Layer, ...] | None:
    """The one layer of each encoder that a recipe reads; none if it reads others.

    identities: what the run kept of its encoders.
    """
    if len(recipe.upstreams) > 1 and recipe.fusion.order != "layers_first":
        return None
    interface = recipe.fusion.interface
    found = []
    for name, part in recipe.upstreams.items():
        candidate = next(
            (
                variant.encoder
                for variant in known
                if variant.recipe.upstreams[variant.encoder].without("layers")
                == part.without("layers")  # of which each has its own number
                and build.identities(variant.recipe)[variant.encoder] == identities.get(name)
            ),
            None,
        )
        if candidate is None:
            return None
        numbers = build.build_upstream(recipe, name).layers
        if interface.kind == "single_layer":
            found.append((candidate, numbers[interface.options.get("layer", -1)]))
        elif len(numbers) == 1:
            found.append((candidate, numbers[0]))
        else:
            return None
    return tuple(sorted(found))


def pairs_of(trained: Sequence[Trained]) -> dict[str, list[tuple[Layer, ...]]]:
    """By task, the pairs that were trained, to be probed, too."""
    found: dict[str, list[tuple[Layer, ...]]] = {}
    for one in trained:
        if len(one.layers) == 2:
            found.setdefault(one.task, []).append(one.layers)
    return found


def agreements(found: Sequence[Selected], trained: Sequence[Trained]) -> Iterator[Agreement]:
    """For each task and metric, of all cells and of single layers; then of all tasks together.

    Together: cells are ranked within their task, in the task's primary metric, so that no task is
    compared with another. Intervals are from cells drawn with replacement within each task; cells
    of one encoder are alike, so that they are narrower than for other encoders.
    """
    every: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    single: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for selected in found:
        mine = [one for one in trained if one.task == selected.task]
        for position, metric in enumerate(mine[0].scores if mine else ()):
            pairs = _values(selected, mine, metric)
            alone = _values(selected, [one for one in mine if len(one.layers) == 1], metric)
            if position == 0:
                every.append(pairs)
                single.append(alone)
            name = f"{selected.task}: {full_name(metric)}"
            if len(pairs[0]) >= LEAST:
                yield _agreement(name, [pairs])
            if LEAST <= len(alone[0]) < len(pairs[0]):
                yield _agreement(f"{name}, single layers", [alone])
    for name, groups in (("all tasks", every), ("all tasks, single layers", single)):
        kept = [group for group in groups if len(group[0]) >= LEAST]
        if len(kept) > 1:
            yield _agreement(name, kept)


def _values(
    selected: Selected, trained: Sequence[Trained], metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probe and trained scores of the cells that have both, more is better in both."""
    rows = []
    for one in trained:
        candidate = selected.of(one.layers)
        if candidate:
            sign = 1 if one.higher_is_better else -1
            rows.append((selected.sign * candidate.point, sign * one.scores[metric]))
    probed, scored = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return probed, scored


def _agreement(
    what: str, groups: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> Agreement:
    random = np.random.default_rng(20123)
    drawn = []
    for _ in range(DRAWS):
        chosen = [random.integers(0, len(x), len(x)) for x, _ in groups]
        rho = spearman([(x[c], y[c]) for (x, y), c in zip(groups, chosen, strict=True)])
        if np.isfinite(rho):
            drawn.append(rho)
    low, high = np.percentile(drawn, [2.5, 97.5])
    cells = sum(len(x) for x, _ in groups)
    return Agreement(what, cells, spearman(groups), float(low), float(high))


def spearman(groups: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    """Correlation of ranks within each group, all groups together; NaN if nothing differs.

    >>> import numpy as np
    >>> one, other = np.array([[1.0, 2, 3], [1, 4, 9]]), np.array([[7.0, 8], [5, 6]])
    >>> spearman([tuple(one), tuple(other)])
    1.0
    """
    from scipy.stats import rankdata

    ranks = [
        [2 * (rankdata(values) - 0.5) / len(values) - 1 for values in group] for group in groups
    ]
    x, y = (np.concatenate(side) for side in zip(*ranks, strict=True))
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y / spread) if spread > 1e-12 else float("nan")


def trained_tables(found: Sequence[Selected], trained: Sequence[Trained]) -> list[Table]:
    """The correlations, and what following the probes would have cost."""
    rows = [
        [a.what, str(a.cells), f"{a.rho:+.2f}\n[{a.low:+.2f}, {a.high:+.2f}]"]
        for a in agreements(found, trained)
    ]
    title = "Probes against trained results\nSpearman's rho, 95 % interval from resampled cells; "
    title += "probes saw development data, results are of the test split"
    tables: list[Table] = [(title, ["", "cells", "rho"], rows)]
    choices = [row for selected in found for row in _choices(selected, trained)]
    columns = ["task", "probes choose", "trained, %", "best trained", "trained, %"]
    tables.append(("What following the probes would have given", columns, choices))
    return tables


def _choices(selected: Selected, trained: Sequence[Trained]) -> Iterator[list[str]]:
    """Of the cells that were trained, the one that the probes choose and the best."""
    for noun, count in (("layer", 1), ("pair", 2)):
        cells = [
            (candidate, one)
            for one in trained
            if one.task == selected.task
            and len(one.layers) == count
            and (candidate := selected.of(one.layers))
        ]
        if len(cells) < 2:
            continue
        metric = next(iter(cells[0][1].scores))
        sign = 1 if cells[0][1].higher_is_better else -1
        _, mine = max(cells, key=lambda c: selected.sign * c[0].point)
        _, best = max(cells, key=lambda c: sign * c[1].scores[metric])
        yield [
            f"{selected.task}, {noun}: {full_name(metric)}",
            named(mine.layers),
            f"{100 * mine.scores[metric]:.1f}",
            named(best.layers),
            f"{100 * best.scores[metric]:.1f}",
        ]


def named(layers: Sequence[Layer]) -> str:
    """Encoders with their layers, as a person reads them.

    >>> named([("hubert", 3), ("mel", 0)])
    'hubert 3 + mel 0'
    """
    return " + ".join(f"{encoder} {layer}" for encoder, layer in layers)
