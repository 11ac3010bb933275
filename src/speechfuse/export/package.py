"""The folder that `speechfuse export` writes, whole or not at all.

    model.onnx             samples -> encoders -> fusion -> heads, all tasks
    decoder-TASK.onnx      of a task that writes: one token more, with what was kept of those before
    weights.safetensors    of all graphs, equal ones once
    config.json            tasks, labels, rates, what the graphs take and give
    TASK.vocabulary.json, TASK.tokenizer.json
    run.py                 asks it, without speechfuse
    report.json, README.md parity, sizes, speed, accuracy

In torch's format the graphs are model.pt2 and decoder-TASK.pt2, their weights inside, and lstm.py
is an operator that they need.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from speechfuse import __version__
from speechfuse.checkpoint import write_text
from speechfuse.errors import ExportError, RunError
from speechfuse.export import measuring, onnx_files, onnx_graphs, quality, torch_programs
from speechfuse.export.about import write_about
from speechfuse.export.loading import Source, greedy_instead, load_source
from speechfuse.export.plans import GraphPlan, graph_plans
from speechfuse.export.report import readme
from speechfuse.export.run import Package
from speechfuse.taskdata import TaskData
from speechfuse.types import Progress

Format = Literal["onnx", "torch"]
BATCHES = 12  # that are compared


def export_run(
    run: Path,
    folder: Path,
    *,
    format: Format = "onnx",
    int8: bool = False,
    batches: int = BATCHES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a package of a trained run and return its report.

    int8: weights of products in 8 bits; what that costs is measured on the run's corpora.
    batches: random ones that the package and the library are compared on.

    Raises:
        RunError: no trained run, or the folder is there already.
        ExportError: a part for which there is no graph, a missing library, or a graph that does
            not give what the run gives.
    """
    if folder.exists():
        raise RunError(f"{folder} is there already; choose another folder")
    if int8 and format != "onnx":
        raise ExportError("--int8 is for --format onnx; torch's programs keep float32")
    if format == "onnx":
        onnx_graphs.check_libraries()
    source = load_source(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as made:
        part = Path(made) / "float32"
        part.mkdir()
        plans = graph_plans(source)
        write_about(source, plans, part, format)
        _write_graphs(plans, part, format, progress)
        data = measuring.corpora(source, int8, progress)
        parity = measuring.compared(source, part, data, batches)
        report = {
            "run": run.resolve().name,
            "format": format,
            "precision": "float32",
            "speechfuse": __version__,
            "greedy_instead": greedy_instead(source.recipe),
            "bfloat16": source.low_precision,
            "parity": measuring.told(parity),
            "bytes": _sizes(part),
        }
        packages: dict[str, Path] = {format: part}
        if int8:
            part = _quantised(source, part, Path(made), data, report, progress)
            packages["int8"] = part
        report["seconds"] = measuring.speed(source, packages)
        write_text(part / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(part / "README.md", readme(report, source.recipe))
        part.replace(folder)
    return report


def _write_graphs(
    plans: Sequence[GraphPlan], folder: Path, format: Format, progress: Progress | None
) -> None:
    """model and decoders, in the asked format."""
    models = {}
    for done, one in enumerate(plans):
        if progress:
            progress("graphs", done, len(plans))
        program = onnx_graphs.traced(one.module, one.example, one.dims)
        if format == "torch":
            torch_programs.save(program, folder / f"{one.name}.pt2")
        else:
            made = onnx_graphs.to_onnx(program, one.inputs, one.outputs)
            models[f"{one.name}.onnx"] = made
    if progress:
        progress("graphs", len(plans), len(plans))
    if models:
        onnx_files.save(models, folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _quantised(
    source: Source,
    folder: Path,
    scratch: Path,
    data: Mapping[str, TaskData],
    report: dict[str, Any],
    progress: Progress | None,
) -> Path:
    """The same package with 8-bit weights, and in the report what that costs."""
    part, between = scratch / "int8", scratch / "between"
    part.mkdir()
    between.mkdir()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    models = {name: onnx_graphs.quantised(folder, name, between) for name in config["graphs"]}
    onnx_files.save(models, part)
    for path in folder.iterdir():
        if path.name not in (*models, onnx_files.WEIGHTS, "config.json"):
            shutil.copyfile(path, part / path.name)
    write_text(
        part / "config.json",
        json.dumps({**config, "precision": "int8"}, indent=2, ensure_ascii=False) + "\n",
    )
    packages = {"onnx": Package(folder), "int8": Package(part)}
    report |= {
        "precision": "int8",
        "bytes_float32": report["bytes"],
        "bytes": _sizes(part),
    }
    if data:
        report["scores"] = quality.scores(packages, data, source.strictest, progress)
    return part


def default_folder(run: Path, format: Format, *, int8: bool) -> Path:
    """Beside the run: RUN-onnx, RUN-onnx-int8 or RUN-torch."""
    run = run.resolve()
    return run.with_name(f"{run.name}-{format}" + ("-int8" if int8 else ""))
