"""Pruning for reading: what was tried, what it costs now, and what it costs in the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechfuse.metrics import LEAST, full_name, percent, signed, signed_cell
from speechfuse.types import Metric, Table


def tried_table(about: Mapping[str, Any]) -> Table:
    """Every cut on development data, in the order in which they were tried."""
    tasks = {t: m["metric"] for line in about["tried"] for t, m in line["tasks"].items()}
    rows = []
    for line in about["tried"]:
        cells = []
        for task in tasks:
            found = line["tasks"][task]
            loss = Metric(**found["worse_by"])
            cells.append(f"{100 * found['value']['value']:.1f}\n{signed(loss)}")
        verdict = {None: "-", True: "yes", False: "no"}[line["good_enough"]]
        millions = f"{line['encoder_parameters'] / 1e6:.2f} M"
        rows.append([line["what"], str(line["steps"]), millions, *cells, verdict])
    columns = ["blocks that are kept", "steps", "encoder parameters"]
    columns += [f"{task}: {full_name(metric)}" for task, metric in tasks.items()]
    title = "Tried from the run's weights, as they are and trained for "
    title += f"{about['steps']} steps; the better one is shown\n"
    title += (
        "development split, %, below it by how much it is worse than the run, paired, with 95 % "
        f"interval; good enough: no task by more than {100 * about['tolerance']:g}"
    )
    title += ", the whole interval" if about["sure"] else ""
    return title, [*columns, "good enough"], rows


def cost_table(about: Mapping[str, Any]) -> Table:
    """Encoders before and after."""
    rows = []
    for encoder in about["encoders"]:
        (had, left), (large, small) = encoder["blocks"], encoder["parameters"]
        name = encoder["name"]
        rows.append([f"blocks of {name}", str(had), "left out" if left is None else str(left)])
        rows.append([f"parameters of {name}", f"{large:,}", f"{small:,}"])
    speed = about["speed"]
    rows.append(["trained parameters", *(f"{n:,}" for n in about["trained_parameters"])])
    rows.append(
        ["encoders, s of audio a second", f"{speed['before']:.0f}", f"{speed['after']:.0f}"]
    )
    title = f"Encoders, {speed['times']:.2f} times as fast\n{speed['how']}"
    return title, ["", "before", "after"], rows


def test_table(about: Mapping[str, Any]) -> Table:
    """The test set, which chose nothing."""
    columns = ["metric", "before", "after", "difference", "speakers", "verdict"]
    rows = [
        [
            f"{one['task']}: {full_name(one['metric'])}",
            percent(Metric(**one["first"])),
            percent(Metric(**one["value"])),
            signed_cell(Metric(**one["difference"])),
            str(one["difference"]["speakers"]),
            one["verdict"],
        ]
        for one in about["test"]
    ]
    title = "Test split\n% with 95 % interval from resampled speakers; the difference is paired"
    if "trained_as_long" in about:
        columns += ["of the cut alone", "verdict on it"]
        for row, one in zip(rows, about["trained_as_long"], strict=True):
            row += [signed_cell(Metric(**one["difference"])), one["verdict"]]
        title += "\nof the cut alone: minus the whole run trained as many steps more"
    if any(one["difference"]["speakers"] < LEAST for one in about["test"]):
        title += f"; of fewer than {LEAST} speakers it says nothing"
    return title, columns, rows


def prune_tables(about: Mapping[str, Any]) -> list[Table]:
    """Those that there are."""
    tables = [tried_table(about)] if about["tried"] else []
    return tables + ([cost_table(about), test_table(about)] if about["removed"] else [])


def summary(about: Mapping[str, Any]) -> str:
    """What came of it, in a sentence."""
    if not about["removed"]:
        return f"nothing is removed: {about['why']}"
    parts = []
    for encoder in about["encoders"]:
        had, left = encoder["blocks"]
        if left is None:
            parts.append(f"encoder {encoder['name']} is left out")
        elif left < had:
            parts.append(f"{encoder['name']} ends after {left} of {had} blocks")
    text = "; ".join(parts)
    if about["exact"]:
        text += "; no other layer was read, so that nothing was trained and nothing changes"
    return text
