"""Pictures of an answer as SVG that takes its colour from the page around it, light or dark."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from speechfuse.audio import SAMPLE_RATE
from speechfuse.pipeline.answers import Label, Layers, Scores
from speechfuse.pipeline.recordings import Samples

INK = "#010203"  # stands for the colour of the page's text
COLOURS = ("#3b82c4", "#e69f00", "#18a078", "#cc79a7", "#56b4e9", "#d55e00", "#9b86d3", "#999999")
WIDTH = 4.2  # inches: small, so that letters can be read on a narrow screen
WORD, MOST_WORDS = 0.26, 100  # inches of a word below a map, of so many at most; then of every nth
COLUMNS = 1200  # of a spectrogram at most
SHADES, LEAST = "viridis", 0.01  # of maps, and the difference that they show at least
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_LOCK = Lock()  # styles of matplotlib are the whole process's


def spectrogram(samples: Samples) -> str:
    """Level in dB by time and frequency; fills the place that the page has for it."""
    hop = max(160, len(samples) // COLUMNS)
    window = min(400, len(samples))
    taper = torch.hann_window(window)
    spectrum = torch.stft(
        torch.from_numpy(samples), window, hop, window=taper, center=False, return_complex=True
    )
    level = (20 * spectrum.abs().clamp_min(1e-6).log10()).numpy()
    file = io.BytesIO()
    imsave(file, level, vmin=level.max() - 80, cmap="magma", origin="lower", format="png")
    data = b64encode(file.getvalue()).decode()
    khz = _ticks(SAMPLE_RATE / 2000, "bottom")
    seconds = _ticks(len(samples) / SAMPLE_RATE, "left")
    return (
        '<div class="picture sound" role="img" aria-label="Spectrogram">'
        f'<div class="khz">{khz}</div><img alt="" src="data:image/png;base64,{data}">'
        f'<div class="unit">kHz</div><div class="seconds">{seconds}</div>'
        '<div class="axis">seconds</div></div>'
    )


def _ticks(end: float, side: str) -> str:
    """Numbers from 0 to `end`, each at its place."""
    found = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, end)
    marks = [f'<span style="{side}: {100 * at / end:.1f}%">{at:g}</span>' for at in found]
    return "".join(mark for mark, at in zip(marks, found, strict=True) if at <= end)


def class_bars(label: Label, title: str) -> str:
    """Probabilities of the whole recording."""
    assert label.scores is not None
    colours = _colours(label.scores)
    names = sorted(colours, key=lambda name: -(label.scores or {})[name])
    with _LOCK, matplotlib.rc_context(STYLE):
        axes = _axes(0.3 + 0.28 * len(names))
        shares = [100 * label.scores[name] for name in names]
        axes.barh(names, shares, color=[colours[name] for name in names], height=0.7)
        axes.invert_yaxis()
        for row, share in enumerate(shares):
            axes.text(share + 1, row, f"{share:.0f} %", va="center")
        axes.set_xlim(0, 112)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return _svg(axes, title)


def bars_over_time(parts: Sequence[Scores], whole: Mapping[str, float], title: str) -> str:
    """Probabilities of parts of a recording; whole: of all of it, for the same colours."""
    colours = _colours(whole)
    starts = [one.start for one in parts]
    sizes = [one.end - one.start for one in parts]
    below = np.zeros(len(parts))
    with _LOCK, matplotlib.rc_context(STYLE):
        axes = _axes(1.9)
        for name, colour in colours.items():
            shares = [100 * one.scores[name] for one in parts]
            edge: Any = {"edgecolor": INK, "linewidth": 0.4}
            axes.bar(starts, shares, sizes, below, align="edge", color=colour, label=name, **edge)
            below += shares
        axes.set(xlabel="seconds", ylabel="%", ylim=(0, 100), xlim=(0, starts[-1] + sizes[-1]))
        assert axes.figure is not None
        short: Any = {"handlelength": 1.0, "handletextpad": 0.5, "columnspacing": 1.2}
        columns = min(4, len(colours))
        axes.figure.legend(ncols=columns, loc="outside upper center", frameon=False, **short)
        return _svg(axes, title)


def _colours(scores: Mapping[str, float]) -> dict[str, str]:
    """Of the likeliest classes, in the order of their names."""
    names = sorted(scores, key=lambda name: -scores[name])[: len(COLOURS)]
    return dict(zip(sorted(names), COLOURS, strict=False))


def layer_picture(stretches: Sequence[Layers], said: str | None, title: str) -> str:
    """Weights of one model's layers: bars where they never change, else a map over time or words.

    said: the text that was written, to find the words in its tokens.
    """
    numbers = [str(n) for n in stretches[0].numbers]
    maps = [one.weights if one.weights.ndim == 2 else one.weights[:, None] for one in stretches]
    texts = [one.texts for one in stretches if one.texts is not None]
    whole = np.concatenate(maps, axis=1)
    with _LOCK, matplotlib.rc_context(STYLE):
        if not texts and np.ptp(whole, axis=1).max() < 1e-4:
            axes = _axes(1.6)
            axes.bar(numbers, whole[:, 0], color=COLOURS[0], width=0.75)
            axes.set(xlabel="layer", ylabel="weight", ylim=(0, None))
            return _svg(axes, title)
        height = 0.9 + 0.16 * len(numbers)
        if texts:
            words, columns = by_word(texts, whole, said)
            axes = _axes(height + 0.5, max(WIDTH, WORD * min(len(words), MOST_WORDS)))
            edges = np.arange(len(words) + 1.0)
            step = -(-len(words) // MOST_WORDS)
            axes.set_xticks(edges[:-1:step] + 0.5, words[::step], rotation=50, ha="right")
            axes.tick_params(axis="x", length=0)
        else:
            columns, axes = whole, _axes(height + 0.3)
            parts = [
                np.linspace(one.start, one.end, part.shape[1] + 1)[:-1]
                for one, part in zip(stretches, maps, strict=True)
            ]
            edges = np.append(np.concatenate(parts), stretches[-1].end)
            axes.set_xlabel("seconds")
        heights = np.arange(len(numbers) + 1)
        middle, half = (columns.max() + columns.min()) / 2, np.ptp(columns) / 2
        low, high = middle - max(half, LEAST / 2), middle + max(half, LEAST / 2)
        axes.pcolormesh(edges, heights, columns, cmap=SHADES, vmin=low, vmax=high, rasterized=True)
        every = 1 + len(numbers) // 13
        axes.set_yticks(heights[:-1:every] + 0.5, numbers[::every])
        axes.tick_params(axis="y", labelright=bool(texts))  # also where it is scrolled to its end
        axes.set_ylabel("layer")
        return _scale(low, high) + _svg(axes, title)


def _scale(low: float, high: float) -> str:
    """Beside the picture, which may be scrolled."""
    colours = ", ".join(to_hex(shade) for shade in colormaps[SHADES](np.linspace(0, 1, 9)))
    ramp = f'<span class="ramp" style="background: linear-gradient(to right, {colours})"></span>'
    return f'<p class="scale">weight {low:.3f} {ramp} {high:.3f}</p>'


def by_word(
    texts: Sequence[Sequence[str]], weights: np.ndarray, said: str | None
) -> tuple[list[str], np.ndarray]:
    """Positions of tokens (L, T) as the words (L, W) that they make up, each a mean.

    texts: of the tokens of each stretch, the last of which ends it. The tokens as they are where
    they do not spell the text.

    >>> words, _ = by_word([["he", "l", "lo", "you", "end"]], np.ones((2, 5)), "hello you")
    >>> words
    ['hello', 'you', 'end']
    """
    words, columns = [], []
    left = (said or "").split()
    first, index = 0, 0  # positions
    for *tokens, end in texts:
        part = ""
        for text in tokens:
            index, part = index + 1, part + text.replace(" ", "")
            if left and part == left[0]:
                words.append(left.pop(0))
                columns.append(weights[:, first:index].mean(1))
                part, first = "", index
        if part:
            break
        words.append(end)
        columns.append(weights[:, index])
        first = index = index + 1
    if left or first < weights.shape[1]:
        return [text for stretch in texts for text in stretch], weights
    return words, np.stack(columns, 1)


def _axes(height: float, width: float = WIDTH) -> Axes:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return axes


def _svg(axes: Axes, title: str) -> str:
    """Scales with the page, and is scrolled if it is wide; `title` is what a screen reader says."""
    file = io.StringIO()
    assert isinstance(axes.figure, Figure)
    axes.figure.savefig(file, format="svg", dpi=150, metadata={"Date": None, "Title": title})
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawn, count=1)
    size = axes.figure.get_figwidth() / WIDTH
    if size > 1:
        drawn = drawn.replace("<svg", f'<svg style="--times: {size:.3f}"', 1)
    drawn = drawn.replace("<svg", '<svg role="img" class="picture"', 1)
    return f'<div class="scrolled">{drawn}</div>' if size > 1 else drawn
