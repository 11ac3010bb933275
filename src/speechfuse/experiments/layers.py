"""Layer use of a run: which layers each task reads, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechfuse.analyse import LayerUse, layer_use
from speechfuse.build import read_upstreams
from speechfuse.evaluate import open_run
from speechfuse.experiments.panels import STEADY
from speechfuse.extract import Before
from speechfuse.types import Progress, Table

Row = tuple[str, Mapping[int, float]]  # a name, and a value for each layer by its number


def run_layer_use(
    folder: Path, progress: Progress | None = None, before: Before | None = None
) -> list[LayerUse]:
    """Weights and ablations of a trained run.

    before: called with what is to be extracted, and may refuse it.
    """
    run, model, tasks, inputs = open_run(folder, progress, before)
    numbers = {name: one.layers for name, one in read_upstreams(run.recipe()).items()}
    return layer_use(model, tasks, inputs, numbers)


def layer_tables(uses: Sequence[LayerUse]) -> list[Table]:
    """One for each task and model, or merged stack, with a row for each kind of answer."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, Sequence[float]]] = {}
    for use in uses:
        fields = use.gradient or []
        of_use = {"weight": use.weights, "weight x size": use.scaled}
        for index, shares in enumerate(fields):
            of_use["gradient" + (f", position {index}" if len(fields) > 1 else "")] = shares
        of_use["loss without"] = use.ablation
        named = {name: values for name, values in of_use.items() if values}
        numbers = tuple(use.numbered(next(iter(named.values()))))
        found.setdefault((_name(use), numbers), {}).update(named)
    return [
        (
            name,
            ["layer", *map(str, numbers)],
            [[kind, *(f"{value:.3f}" for value in values)] for kind, values in named.items()],
        )
        for (name, numbers), named in found.items()
    ]


def draw_layer_use(uses: Sequence[LayerUse], path: Path) -> None:
    """Write the picture; its kind follows from the file's name."""
    from matplotlib import rc_context

    dated = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    with rc_context(STEADY):
        layer_figure(uses).savefig(path, bbox_inches="tight", dpi=150, **dated)


def layer_figure(uses: Sequence[LayerUse]) -> Any:
    """A heat map for each kind of answer: rows are tasks and models, columns are layers.

    Gradients that are the weights, as those of mixtures are, are not drawn a second time.
    """
    from matplotlib.figure import Figure

    gradients = gradient_rows([use for use in uses if not _weights_again(use)])
    kinds: list[tuple[str, Sequence[Row]]] = [
        ("weight of each layer", [(_name(u), u.numbered(u.weights)) for u in uses if u.weights]),
        ("share of the gradient to each layer", gradients),
        (
            "rise of the loss without the layer",
            [(_name(u), u.numbered(u.ablation)) for u in uses if u.ablation],
        ),
    ]
    shown = [(title, rows) for title, rows in kinds if rows]
    heights = [len(rows) for _, rows in shown]
    figure = Figure(figsize=(8, 0.9 * len(shown) + 0.42 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, rows) in zip(axes, shown, strict=True):
        _heat_map(axis, title, rows)
    return figure


def gradient_rows(uses: Sequence[LayerUse]) -> list[Row]:
    """A row for each block of features, numbered if there are several."""
    return [
        (
            _name(use) + (f", position {i}" if len(use.gradient or ()) > 1 else ""),
            use.numbered(shares),
        )
        for use in uses
        for i, shares in enumerate(use.gradient or ())
    ]


def _weights_again(use: LayerUse) -> bool:
    """To the two digits that are shown."""
    own, found = use.weights, use.gradient or []
    return own is not None and all(
        abs(share - weight) < 0.005
        for shares in found
        for share, weight in zip(shares, own, strict=True)
    )


def _name(use: LayerUse) -> str:
    return f"{use.task}, {use.model}"


def _heat_map(axis: Any, title: str, rows: Sequence[Row]) -> None:
    import numpy as np

    layers = sorted({layer for _, values in rows for layer in values})
    grid = np.array([[values.get(layer, np.nan) for layer in layers] for _, values in rows])
    # Each row on its own scale: tasks have losses of different size.
    top = np.nanmax(np.abs(grid), axis=1, keepdims=True)
    shade = np.clip(grid, 0, None) / np.where(top > 0, top, 1)
    axis.imshow(shade, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            dark = shade[row, column] > 0.6
            text = f"{value:.2f}".replace("-0.00", "0.00")
            axis.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "#333333",
            )
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axis.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    axis.set_xlabel("layer (0 is what the first block reads)", fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
