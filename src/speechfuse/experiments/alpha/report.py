"""Alpha as tables, as a picture and in a file; several runs are seeds, averaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from speechfuse.checkpoint import write_text
from speechfuse.experiments.alpha.run import PROMPT, READ, Alphas
from speechfuse.experiments.alpha.shares import FACTORS
from speechfuse.experiments.panels import legend_below
from speechfuse.metrics import (
    Evidence,
    bracket,
    full_name,
    paired_difference,
    percent,
    signed_cell,
    with_interval,
)
from speechfuse.types import Metric, Table


def alpha_tables(runs: Sequence[Alphas]) -> list[Table]:
    """Alpha by layer, what tells tasks apart, what swaps do, what alpha varies with, and words."""
    return [
        _layers(runs),
        _apart(runs),
        _swaps(runs),
        _shares(runs),
        *_words(runs),
    ]


def _layers(runs: Sequence[Alphas]) -> Table:
    first = runs[0]
    count = next(iter(first.alpha.values())).shape[1]
    rows = []
    for place, task in first.alpha:
        of_runs = torch.stack([run.alpha[place, task] for run in runs])  # (R, U, L)
        mean, spread = of_runs.mean((0, 1)), of_runs.std(1, correction=0).mean(0)
        cells = [f"{m:.3f}\n± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        rows.append([f"{task}, {place}", *cells])
    many = f", mean of {len(runs)} runs" if len(runs) > 1 else ""
    title = (
        f"Alpha of each layer, the same {len(first.run.speakers)} held-out utterances for every "
        f"prompt{many}\n± standard deviation over utterances, each averaged over its positions"
    )
    return title, ["", *(f"layer {i + 1}" for i in range(count))], rows


def _apart(runs: Sequence[Alphas]) -> Table:
    rows = []
    for place, one, other in runs[0].apart:
        value = with_interval([run.apart[place, one, other] for run in runs])
        rows.append([f"{one} and {other}, {place}", _bits(value)])
    title = "Jensen-Shannon divergence of alpha between tasks\n0: the same, 1 bit: no layer shared"
    return title, ["", "bits"], rows


def _swaps(runs: Sequence[Alphas]) -> Table:
    rows = []
    for index, swap in enumerate(runs[0].swaps):
        several = [run.swaps[index] for run in runs]
        own, other = [s.own for s in several], [s.with_other for s in several]
        metric = full_name(runs[0].run.tasks[swap.task].task.primary)
        change = paired_difference(other, own)
        rows.append(
            [
                f"{swap.task} with the {_named(swap.what)} of {swap.other}",
                _bits(with_interval([s.divergence for s in several])),
                f"{metric} {100 * with_interval(other).value:.1f}",
                signed_cell(change),
            ]
        )
    title = (
        "A task with what another one has, the rest as it was\n"
        "95 % intervals over speakers and seeds, change paired"
    )
    return title, ["", "alpha moves by, bits", "metric, %", "change, points"], rows


def _named(what: str) -> str:
    return "scalar and the prompt" if what == "both" else what


def _shares(runs: Sequence[Alphas]) -> Table:
    places = list(dict.fromkeys(place for place, _ in runs[0].shares))
    rows = [
        [
            factor,
            *(
                percent(with_interval([run.shares[place, factor] for run in runs]))
                for place in places
            ),
        ]
        for factor in FACTORS
    ]
    title = (
        "Shares of the variance of alpha, %\n"
        "every task's gate x scalar x prompt on the same held-out utterances"
    )
    return title, ["", *places], rows


def _words(runs: Sequence[Alphas]) -> Iterator[Table]:
    known = [run.words for run in runs if run.words is not None]
    if not known:
        return
    first = known[0]
    rows = []
    for name in first.embedded:
        several = [words.embedded[name] for words in known]
        parts: list[list[Evidence]] = [
            [one.everything for one in several],
            [one.within for one in several],
            [one.unseen for one in several],
        ]
        rows.append([name, *(percent(with_interval(part)) for part in parts)])
    old, new = first.counts
    title = (
        f"Alpha read from the prompt by ridge regression, R2 in %; {old} prompts that were trained "
        f"on, {new} that were not\n95 % intervals of resampled prompts and seeds, each predicted "
        "from others"
    )
    columns = ["", "all", "within tasks", "within tasks, prompts not trained on"]
    yield title, columns, rows
    rows = []
    for task in first.trained:
        trained, unseen = (
            [getattr(w, kind)[task] for w in known] for kind in ("trained", "unseen")
        )
        rows.append(
            [
                f"{task}: {full_name(runs[0].run.tasks[task].task.primary)}",
                percent(with_interval(trained)),
                percent(with_interval(unseen)),
                signed_cell(paired_difference(unseen, trained)),
            ]
        )
    columns = ["", "prompts trained on, %", "not trained on, %", "change, points"]
    yield "Test sets asked in other words, utterances taking the prompts in turn", columns, rows


def _bits(value: Metric) -> str:
    return f"{value.value:.3f}\n{bracket(value, '.3f', 1)}"


def alpha_figure(runs: Sequence[Alphas]) -> Any:
    """Bars of each layer, one for each task: a row of panels for each place, a column for each run.

    Lines on the bars are standard deviations over utterances; dotted is the plain mean of layers.
    """
    from matplotlib.figure import Figure

    places, tasks = (PROMPT, READ), list(runs[0].run.tasks)
    count = next(iter(runs[0].alpha.values())).shape[1]
    width = max(3.9 if len(runs) > 1 else 5.0, 0.5 * count * len(tasks) * 0.7)
    figure = Figure(figsize=(width * len(runs) + 0.4, 5.6), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False, sharex=True, sharey=True)
    for place, line in zip(places, axes, strict=True):
        for run, axis in zip(runs, line, strict=True):
            for index, task in enumerate(tasks):
                alpha = run.alpha[place, task]
                axis.bar(
                    [
                        layer + 1 + 0.8 * ((index + 0.5) / len(tasks) - 0.5)
                        for layer in range(count)
                    ],
                    alpha.mean(0).tolist(),
                    yerr=alpha.std(0, correction=0).tolist(),
                    width=0.75 / len(tasks),
                    label=f"prompt of {task}",
                    color=f"C{index}",
                    error_kw={"elinewidth": 1, "ecolor": "#333333"},
                )
            axis.axhline(1 / count, color="#777777", linestyle=":", linewidth=1)
            axis.set_ylim(bottom=0)
            axis.set_xticks(range(1, count + 1))
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            seed = f", {run.run.folder.name}" if len(runs) > 1 else ""
            axis.set_title(f"{place}{seed}", fontsize=9, loc="left")
        line[0].set_ylabel("alpha", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("layer of the prompted transformer", fontsize=8)
    figure.suptitle(
        "Share of each layer, every prompt on the same audio\n"
        "lines: standard deviation over utterances; dotted: plain mean of layers",
        fontsize=9,
    )
    legend_below(figure, axes[0, 0])
    return figure


def flags(runs: Sequence[Alphas]) -> list[str]:
    """Of every run, under its folder's name if there are several."""
    return [
        f"{run.run.folder.name}, {line}" if len(runs) > 1 else line
        for run in runs
        for line in run.flags
    ]


def write_alpha(runs: Sequence[Alphas], out: Path) -> Path:
    """Write OUT/alpha.png, and OUT/alpha.json: means, intervals and all tables."""
    out.mkdir(parents=True, exist_ok=True)
    alpha_figure(runs).savefig(out / "alpha.png", dpi=150)
    data = {
        "runs": [
            {
                "folder": str(run.run.folder),
                "alpha": [
                    {
                        "task": task,
                        "place": place,
                        "mean": alpha.mean(0).tolist(),
                        "standard deviation": alpha.std(0, correction=0).tolist(),
                    }
                    for (place, task), alpha in run.alpha.items()
                ],
                "apart": [
                    {"tasks": [one, other], "place": place, **asdict(with_interval(evidence))}
                    for (place, one, other), evidence in run.apart.items()
                ],
                "shares": [
                    {"place": place, "of": factor, **asdict(with_interval(evidence))}
                    for (place, factor), evidence in run.shares.items()
                ],
                "flags": list(run.flags),
            }
            for run in runs
        ],
        "tables": [
            {"title": title, "columns": columns, "rows": rows}
            for title, columns, rows in alpha_tables(runs)
        ],
    }
    write_text(out / "alpha.json", json.dumps(data, indent=1) + "\n")
    return out / "alpha.png"
