"""The result of a selection: tables, a sentence for each task, curves over layers, a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechfuse.experiments.panels import dress, legend_below, svg, write_page
from speechfuse.experiments.probing.properties import chance_of
from speechfuse.experiments.selecting.file import SelectFile
from speechfuse.experiments.selecting.run import Candidate, Selected
from speechfuse.experiments.selecting.trained import Trained, agreements, named, trained_tables
from speechfuse.metrics import full_name, percent, signed, signed_cell
from speechfuse.types import Table

SHOWN = 8  # pairs in a table
MEANINGS = {
    "characters": "share of each character in the text, by a linear map of the mean over frames; "
    "R2 on speakers and texts that are held out",
    "verification": "are two clips of one speaker: cosine of mean and deviation over frames after "
    "linear discriminant analysis on other speakers; equal error rate, less is better",
}
OF_CLASSES = (
    "class of the clip, by a linear map of mean and deviation over frames; balanced accuracy on "
    "speakers who are held out"
)


def encoder_table(selection: SelectFile, found: Sequence[Selected]) -> Table:
    """For each encoder its best layer in each task, and the last one."""
    rows = []
    for encoder in selection.upstreams:
        cells = [encoder]
        for selected in found:
            best = selected.best_of(encoder)
            mark = " *" if selected.as_good(best) else ""
            cells.append(f"layer {best.layers[0][1]}{mark}\n{percent(best.value)}")
        rows.append(cells)
    columns = ["", *(f"{s.task}: {_measure(s)}" for s in found)]
    sizes = "; ".join(
        f"{s.task} {len(s.clips.utterances)} clips, {len(set(s.clips.speakers))} speakers"
        for s in found
    )
    title = f"{selection.title or selection.name}: best layer of each encoder\n"
    title += f"% with 95 % interval; {sizes}; *: not told apart from the best"
    return title, columns, rows


def pair_table(selected: Selected) -> Table:
    """Pairs, best first: what the other encoder adds to the better one alone."""
    rows = [
        [
            named(pair.both.layers),
            percent(pair.both.value),
            named(pair.better.layers),
            signed_cell(pair.gain),
            "-" if pair.residual is None else f"{100 * pair.residual:.0f}",
            f"{pair.likeness:.2f}",
        ]
        for pair in selected.pairs[:SHOWN]
    ]
    columns = ["pair", _measure(selected), "better alone", "better by", "residual R2", "CKA"]
    title = (
        f"{selected.task}: pairs of encoders\nbetter by: points, paired; residual R2: % of what "
    )
    title += "the better one leaves that the other explains, linearly; CKA: likeness, 0 to 1"
    return title, columns, rows


def advice(selected: Selected) -> str:
    """What to take, in a sentence."""
    best = selected.singles[0]
    equals = [c for c in selected.singles[1:] if selected.as_good(c)]
    text = f"{selected.task}: take {named(best.layers)} ({_measure(selected)} "
    text += f"{' '.join(percent(best.value).split())})"
    if equals:
        shown = ", ".join(named(c.layers) for c in equals[:4])
        text += f"; not told apart from it: {shown}"
        text += f" and {len(equals) - 4} more" if len(equals) > 4 else ""
    if selected.pairs:
        pair = selected.pairs[0]
        if pair.gain.above(0):
            text += f"; the pair {named(pair.both.layers)} is better by {signed(pair.gain)}"
        else:
            text += f"; no pair is shown to be better, the best by {signed(pair.gain)}"
    return text + "."


def omissions(left_out: Mapping[str, str] | None) -> list[str]:
    """Tasks that cannot be probed, in words."""
    return [f"{task} is left out: {why}" for task, why in (left_out or {}).items()]


def _measure(selected: Selected) -> str:
    return full_name(selected.metric)


def select_figure(selection: SelectFile, found: Sequence[Selected]) -> Any:
    """A panel for each task: the probe's value over layers, a line for each encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.9 * len(found), 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, selected in zip(axes, found, strict=True):
        widest = max(c.layers[0][1] for c in selected.singles)
        for index, encoder in enumerate(selection.upstreams):
            mine = sorted(
                (c for c in selected.singles if c.layers[0][0] == encoder),
                key=lambda c: c.layers[0][1],
            )
            _draw(axis, encoder, f"C{index}", mine, widest)
        if selected.what != "verification":
            chance = 100 * chance_of(selected.what, selected.clips)
            axis.axhline(chance, color="#888888", linestyle=":", linewidth=1)
        dress(axis, f"{selected.task}: {_measure(selected)}, %")
    legend_below(figure, axes[0])
    return figure


def _draw(axis: Any, encoder: str, colour: str, mine: Sequence[Candidate], widest: int) -> None:
    flat = len(mine) == 1
    layers = [0, max(1, widest)] if flat else [c.layers[0][1] for c in mine]
    values = [c.value for c in mine] * (2 if flat else 1)
    style = {"linestyle": "--"} if flat else {"linestyle": "-", "marker": "o", "markersize": 3}
    shown = [100 * v.value for v in values]
    axis.plot(layers, shown, color=colour, linewidth=1.3, label=encoder, **style)
    lows, highs = zip(*([100 * end for end in v.ends] for v in values), strict=True)
    axis.fill_between(layers, lows, highs, color=colour, alpha=0.13, linewidth=0)


def select_tables(
    selection: SelectFile, found: Sequence[Selected], trained: Sequence[Trained] = ()
) -> list[Table]:
    """Encoders, pairs of each task, and if something was trained how well it was foreseen."""
    tables = [encoder_table(selection, found)]
    tables += [pair_table(selected) for selected in found if selected.pairs]
    return tables + (trained_tables(found, trained) if trained else [])


def write_select_report(
    selection: SelectFile,
    found: Sequence[Selected],
    out: Path,
    trained: Sequence[Trained] = (),
    left_out: Mapping[str, str] | None = None,
) -> Path:
    """Write OUT/report.html."""
    meanings = {s.task: MEANINGS.get(s.what, OF_CLASSES) for s in found}
    out.mkdir(parents=True, exist_ok=True)
    return write_page(
        "select.html.j2",
        out,
        title=selection.title or selection.name,
        curves=svg(select_figure(selection, found)),
        advice=[*(advice(selected) for selected in found), *omissions(left_out)],
        tables=select_tables(selection, found, trained),
        meanings=list(meanings.items()),
        protocol=protocol(selection),
    )


def protocol(selection: SelectFile) -> str:
    """How the numbers came about, in words."""
    return (
        f"Training and development utterances, at most {selection.limits.utterances} of a task, "
        "drawn evenly from the speakers; the test split is never read. Speakers are drawn into "
        f"{selection.folds} folds, each is predicted from the others by a solution in closed form; "
        f"seeds {', '.join(map(str, selection.seeds))} draw other folds and are averaged. "
        "Intervals are from resampled speakers. The best of many layers is chosen on the same "
        "folds, so its value is a little high."
    )


def select_json(
    selection: SelectFile,
    found: Sequence[Selected],
    trained: Sequence[Trained] = (),
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The same as data; fractions, not percent."""

    def told(candidate: Candidate) -> dict[str, Any]:
        return {"layers": [list(one) for one in candidate.layers], **asdict(candidate.value)}

    data: dict[str, Any] = {
        "name": selection.name,
        "tasks": {
            s.task: {
                "metric": s.metric,
                "higher_is_better": s.sign > 0,
                "clips": len(s.clips.utterances),
                "layers": [told(c) | {"as_good_as_the_best": s.as_good(c)} for c in s.singles],
                "pairs": [
                    told(pair.both)
                    | {
                        "better_alone": [list(one) for one in pair.better.layers],
                        "better_by": asdict(pair.gain),
                        "residual_r2": pair.residual,
                        "cka": pair.likeness,
                    }
                    for pair in s.pairs
                ],
            }
            for s in found
        },
        "left_out": dict(left_out or {}),
    }
    if trained:
        data["agreement"] = [asdict(one) for one in agreements(found, trained)]
    return data
