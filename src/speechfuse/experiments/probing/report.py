"""The result of probing: a table, curves over layers, and in words what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechfuse.experiments.panels import dress, legend_below, svg, write_page
from speechfuse.experiments.probing.file import ProbeFile
from speechfuse.experiments.probing.properties import Clips, chance_of, metric_of
from speechfuse.experiments.probing.run import Result
from speechfuse.metrics import (
    SpeakerSums,
    full_name,
    paired_difference,
    percent,
    signed,
    with_interval,
)
from speechfuse.types import Metric, Table

MEANINGS = {
    "pitch": "log F0 by Praat, of voiced frames; a linear map of each frame; R2, held-out speakers",
    "energy": "log energy of 25 ms around each frame; a linear map of each frame; R2, held-out "
    "speakers",
    "characters": "share of each character in the text; a linear map of the mean over frames, "
    "which is the mean of a map of each frame, so that no alignment is needed; R2 over all "
    "characters, held-out speakers and texts",
    "speaker": "who speaks, of speakers that are trained on; mean and standard deviation over "
    "frames; accuracy on texts that were not trained on",
}
LOWEST = -0.25  # of the picture: what is worse is in the table
OF_LABELS = (
    "the label of the clip; mean and standard deviation over frames; balanced accuracy (UA), "
    "held-out speakers"
)


@dataclass(frozen=True)
class Curve:
    """One property over the layers of one encoder."""

    encoder: str
    layers: Sequence[int]  # their numbers
    evidence: Sequence[Sequence[SpeakerSums]]  # of each layer, one for each seed
    values: Sequence[Metric]  # of each layer

    @property
    def best(self) -> int:
        return max(range(len(self.values)), key=lambda layer: self.values[layer].value)

    def as_good(self) -> list[int]:
        """Layers whose paired difference to the best one has zero in its interval."""
        top = self.evidence[self.best]
        gains = [paired_difference(top, other) for other in self.evidence]
        return [layer for layer, gain in enumerate(gains) if not gain.above(0)]


def curves(results: Sequence[Result]) -> dict[str, list[Curve]]:
    """By property, a curve for each encoder."""
    found: dict[str, dict[str, dict[int, list[SpeakerSums]]]] = {}
    for r in results:
        of_encoder = found.setdefault(r.property, {}).setdefault(r.encoder, {})
        of_encoder.setdefault(r.layer, []).append(r.evidence)
    return {
        name: [
            Curve(
                encoder,
                list(layers),
                several := [*layers.values()],
                [with_interval(s) for s in several],
            )
            for encoder, layers in {
                e: dict(sorted(v.items())) for e, v in by_encoder.items()
            }.items()
        ]
        for name, by_encoder in found.items()
    }


def probe_table(probe: ProbeFile, clips: Clips, results: Sequence[Result]) -> Table:
    """A row for each layer of each encoder, a column for each property."""
    found = curves(results)
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for name, of_encoders in found.items():
        for curve in of_encoders:
            for layer, value in zip(curve.layers, curve.values, strict=True):
                cells.setdefault((curve.encoder, layer), {})[name] = percent(value)
    deep = {encoder for encoder, layer in cells if layer > 0}
    rows = [
        [f"{encoder}, layer {layer}" if encoder in deep else encoder, *texts.values()]
        for (encoder, layer), texts in cells.items()
    ]
    rows.append(["chance", *(f"{100 * chance_of(name, clips):.1f}" for name in found)])
    speakers = len(set(clips.speakers))
    seeds = len(probe.seeds)
    title = f"{probe.title or probe.name}\n% with 95 % interval; {speakers} speakers, "
    title += f"{len(clips.utterances)} clips, {probe.folds} folds, {seeds} seed{'s' * (seeds > 1)}"
    return title, ["", *(f"{name}: {full_name(metric_of(name))}" for name in found)], rows


def findings(probe: ProbeFile, results: Sequence[Result]) -> list[str]:
    """A paragraph for each property: where it is best read, and against the baseline."""
    return [
        f"{name.capitalize()}: {'; '.join(_sentences(probe, of_encoders))}."
        for name, of_encoders in curves(results).items()
    ]


def _sentences(probe: ProbeFile, of_encoders: Sequence[Curve]) -> Iterator[str]:
    base = next((c for c in of_encoders if c.encoder == probe.baseline), None)
    for curve in sorted(of_encoders, key=lambda c: -c.values[c.best].value):
        best = curve.values[curve.best]
        text = f"{curve.encoder} {' '.join(percent(best).split(chr(10)))}"
        if len(curve.values) > 1:
            equals = curve.as_good()
            text += f" in layer {curve.layers[curve.best]}"
            if len(equals) > 1:
                same = _ranges([curve.layers[layer] for layer in equals])
                text += f" (layers {same} are not told apart from it)"
            last = len(curve.values) - 1
            if last not in equals:
                text += f", {100 * curve.values[last].value:.1f} in the last layer"
        if base and curve is not base:
            gain = paired_difference(curve.evidence[curve.best], base.evidence[base.best])
            text += f", {signed(gain)} against {base.encoder}"
        yield text


def _ranges(layers: Sequence[int]) -> str:
    """Numbers in rising order, neighbours joined.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def probe_figure(probe: ProbeFile, clips: Clips, results: Sequence[Result]) -> Any:
    """A panel for each property: value over layers, an encoder of one layer as a dashed line."""
    from matplotlib.figure import Figure

    found = curves(results)
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(3.9 * columns, 3.1 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    colours = {encoder: f"C{i}" for i, encoder in enumerate(probe.upstreams)}
    for axis, (name, of_encoders) in zip(axes, found.items(), strict=False):
        lowest = min(curve.layers[0] for curve in of_encoders)
        widest = max(curve.layers[-1] for curve in of_encoders)
        for curve in of_encoders:
            flat = len(curve.values) == 1
            layers = [lowest, max(lowest + 1, widest)] if flat else [*curve.layers]
            shown = [*curve.values] * (2 if flat else 1)
            colour = colours[curve.encoder]
            axis.plot(
                layers,
                [100 * v.value for v in shown],
                color=colour,
                linestyle="--" if flat else "-",
                marker="" if flat else "o",
                markersize=3,
                linewidth=1.3,
                label=curve.encoder,
            )
            lows, highs = zip(*([100 * end for end in v.ends] for v in shown), strict=True)
            axis.fill_between(layers, lows, highs, color=colour, alpha=0.13, linewidth=0)
        axis.axhline(100 * chance_of(name, clips), color="#888888", linestyle=":", linewidth=1)
        dress(axis, f"{name}: {full_name(metric_of(name))}, %")
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 100 * LOWEST), min(high, 102))
        axis.set_xticks(range(lowest, widest + 1))
    legend_below(figure, axes[0])
    return figure


def write_probe_report(
    probe: ProbeFile, clips: Clips, results: Sequence[Result], out: Path
) -> Path:
    """Write OUT/report.html and OUT/layers.png."""
    figure = probe_figure(probe, clips, results)
    figure.savefig(out / "layers.png", dpi=150)
    names = dict.fromkeys(r.property for r in results)
    return write_page(
        "probe.html.j2",
        out,
        title=probe.title or probe.name,
        curves=svg(figure),
        findings=findings(probe, results),
        table=probe_table(probe, clips, results),
        meanings=[(name, MEANINGS.get(name, OF_LABELS)) for name in names],
        protocol=protocol(probe, clips),
    )


def protocol(probe: ProbeFile, clips: Clips) -> str:
    """How the numbers came about, in words."""
    text = (
        f"{len(clips.utterances)} clips of {len(set(clips.speakers))} speakers. Speakers are "
        f"drawn into {probe.folds} folds (for speaker, texts are); each fold is predicted by ridge "
        "regression on the others, its strength chosen among them, each left out in turn. "
        f"Seeds {', '.join(map(str, probe.seeds))} draw other folds; their values are averaged. "
        "The best of several layers is chosen on the same folds, so its value is a little high."
    )
    redrawn = [
        name
        for name, part in probe.upstreams.items()
        if part.options.get("weights") == "random" and "seed" not in part.options
    ]
    if redrawn:
        text += f" They draw the weights of {' and '.join(redrawn)}, too."
    return text
