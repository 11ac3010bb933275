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
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from speechfuse import __version__
from speechfuse.audio import SAMPLE_RATE
from speechfuse.checkpoint import write_text
from speechfuse.clips import read_batch
from speechfuse.contracts import Task
from speechfuse.errors import ExportError, RunError, SpeechFuseError
from speechfuse.export import onnx_files, onnx_graphs, quality, torch_programs
from speechfuse.export.graph import INPUTS, example
from speechfuse.export.loading import Source, load_source, searches
from speechfuse.export.parity import LOW_TOLERANCE, TOLERANCE, Parity, compare, random_batches
from speechfuse.export.report import readme
from speechfuse.export.run import Package
from speechfuse.heads.text import Text
from speechfuse.measure import median_seconds
from speechfuse.taskdata import TaskData, corpora_folder, load_tasks
from speechfuse.tasks.classification import Classification
from speechfuse.tasks.diarization import Diarization
from speechfuse.tasks.intent import Intent
from speechfuse.tasks.language import LanguageToken
from speechfuse.tasks.phones import Phones
from speechfuse.tasks.recognition import Recognition
from speechfuse.text import Pieces
from speechfuse.types import Progress

Format = Literal["onnx", "torch"]
BATCHES = 12  # that are compared
SPEED_SECONDS = 10.0  # of audio that is timed
REPEATS = 3
HERE = Path(__file__).parent


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
        _write_graphs(source, part, format, progress)
        _write_about(source, part, format)
        data = _corpora(source, int8, progress)
        parity = _compared(source, part, data, batches)
        report = {
            "run": run.resolve().name,
            "format": format,
            "precision": "float32",
            "speechfuse": __version__,
            "searches": searches(source.recipe),
            "bfloat16": source.low_precision,
            "parity": _told(parity),
            "seconds": _speed(source, {format: part}),
            "bytes": _sizes(part),
        }
        if int8:
            part = _quantised(source, part, Path(made), data, report, progress)
        write_text(part / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(part / "README.md", readme(report, source.recipe, _sizes(part)))
        part.replace(folder)
    return report


def _write_graphs(source: Source, folder: Path, format: Format, progress: Progress | None) -> None:
    """model and decoders, in the asked format."""
    graphs = [_encoder(source), *_decoders(source)]
    models = {}
    for done, one in enumerate(graphs):
        if progress:
            progress("graphs", done, len(graphs))
        program = onnx_graphs.traced(one.module, one.example, one.dims)
        if format == "torch":
            torch_programs.save(program, folder / f"{one.name}.pt2")
        else:
            made = onnx_graphs.to_onnx(program, one.inputs, one.outputs, one.dims)
            models[f"{one.name}.onnx"] = made
    if progress:
        progress("graphs", len(graphs), len(graphs))
    if models:
        onnx_files.save(models, folder)


@dataclass(frozen=True)
class _Made:
    """A graph to be written."""

    name: str
    module: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    dims: Sequence[Mapping[int, str]]
    inputs: Sequence[str]
    outputs: Sequence[str]


def _encoder(source: Source) -> _Made:
    samples, lengths = example(source.min_samples)
    dims = ({0: "batch", 1: "samples"}, {0: "batch"})
    return _Made("model", source.graph, (samples, lengths), dims, INPUTS, source.graph.names)


def _decoders(source: Source) -> list[_Made]:
    """Of the tasks that write; their example is what the model gives."""
    found = []
    decoders = source.graph.decoders()
    if decoders:
        with torch.no_grad():
            given = dict(
                zip(source.graph.names, source.graph(*example(source.min_samples)), strict=True)
            )
    for task, decoder in decoders.items():
        tokens = given[f"{task}.logits"].argmax(-1)
        inputs = ["tokens", "valid", "cache"]
        values = [tokens, given[f"{task}.valid"], given[f"{task}.cache"]]
        dims = [{0: "batch"}, {0: "batch", 1: "past"}, {2: "batch", 4: "past"}]
        if f"{task}.heard" in given:
            inputs, values = [*inputs, "heard"], [*values, given[f"{task}.heard"]]
            dims = [*dims, {1: "batch"}]
        name = f"decoder-{task}"
        outputs = ["logits", "cache_out"]
        found.append(_Made(name, decoder, tuple(values), dims, inputs, outputs))
    return found


def _write_about(source: Source, folder: Path, format: Format) -> None:
    """config.json, vocabularies, and what asks the package."""
    end = "pt2" if format == "torch" else "onnx"
    graphs = {
        f"{one.name}.{end}": {"inputs": [*one.inputs], "outputs": [*one.outputs]}
        for one in (_encoder(source), *_decoders(source))
    }
    config = {
        "format": format,
        "precision": "float32",
        "speechfuse": __version__,
        "sample_rate": SAMPLE_RATE,
        "min_samples": source.min_samples,
        "pad_to": len(example(source.min_samples)[0][0]) if format == "torch" else 0,
        "stretch_seconds": source.stretch_seconds,
        "graph": f"model.{end}",
        "graphs": graphs,
        "upstreams": {
            name: {"frame_rate": up.plan.spec.frame_rate, "layers": [*up.layers]}
            for name, up in zip(source.recipe.upstreams, source.upstreams, strict=True)
        },
        "tasks": {
            name: _entry(source, name, task, folder, end) for name, task in source.tasks.items()
        },
    }
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    shutil.copyfile(HERE / "run.py", folder / "run.py")
    if format == "torch":
        shutil.copyfile(HERE / "lstm.py", folder / "lstm.py")


def _entry(source: Source, name: str, task: Task, folder: Path, end: str) -> dict[str, Any]:
    """What run.py has to know of a task; its vocabulary becomes a file."""
    head: Any = source.graph.model.head_of(name)
    fusion = source.graph.model.fusion_of(name)
    entry: dict[str, Any] = {
        "outputs": source.graph.outputs[name],
        "frame_rate": fusion.frame_rate,
    }
    if isinstance(head, Text):
        entry |= {"decoder": f"decoder-{name}.{end}", "max_tokens": head.max_tokens}
    if isinstance(task, Recognition) and isinstance(task.vocabulary, Pieces):
        write_text(folder / f"{name}.tokenizer.json", task.vocabulary.saved)
        return entry | {"answers": "text", "tokenizer": f"{name}.tokenizer.json"}
    if isinstance(task, Recognition | Phones | LanguageToken):
        symbols: list[str] = task.head_options()["symbols"]
        write_text(folder / f"{name}.vocabulary.json", json.dumps(symbols, ensure_ascii=False))
        return entry | {
            "answers": "text",
            "vocabulary": f"{name}.vocabulary.json",
            "between": " " if isinstance(task, Phones) else "",
            "first_alone": isinstance(task, LanguageToken),
        }
    if isinstance(task, Intent):
        return entry | {"answers": "labels", "slots": [*task.values.values()]}
    if isinstance(task, Classification):
        return entry | {"answers": "label", "labels": task.labels}
    if isinstance(task, Diarization):
        return entry | {"answers": "turns", "median": head.median}
    if task.reads == "vector":
        return entry | {"answers": "vector"}
    raise ExportError(
        f"task '{name}' is a {type(task).__name__}, which run.py cannot put into words; those of "
        "speechfuse can be exported"
    )


def _corpora(source: Source, needed: bool, progress: Progress | None) -> dict[str, TaskData]:
    """Of the run's tasks; none if a corpus is not here, and it is not needed or cannot be made."""
    names = [entry.corpus for entry in source.recipe.tasks.values()]
    if not needed and not all((corpora_folder() / n).exists() or Path(n).exists() for n in names):
        return {}
    with suppress(SpeechFuseError):
        return load_tasks(source.recipe, source.run.tasks(), progress)
    return {}


def _sounds(source: Source, data: Mapping[str, TaskData]) -> list[NDArray[np.float32]]:
    """Clips of the development set; noise that comes and goes if there is none."""
    members = {u.id: u for one in data.values() for u in one.splits["dev"][:8]}
    longest = max(source.upstreams, key=lambda up: up.plan.min_samples)
    if members:
        batch = read_batch([*members.values()], longest)
        pairs = zip(batch.samples, batch.lengths.tolist(), strict=True)
        return [samples[:size].numpy() for samples, size in pairs]
    random = np.random.default_rng(0)
    time = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    return [
        (0.2 * np.sin(2 * np.pi * rate * time) ** 2 * random.standard_normal(len(time))).astype(
            np.float32
        )
        for rate in (0.7, 1.3, 2.9)
    ]


def _compared(source: Source, folder: Path, data: Mapping[str, TaskData], batches: int) -> Parity:
    """Raises ExportError if a number is not what it should be."""
    drawn = random_batches(
        _sounds(source, data), batches, source.min_samples, source.stretch_seconds
    )
    tolerance = LOW_TOLERANCE if source.low_precision else TOLERANCE
    parity = compare(Package(folder), source.library, drawn, tolerance)
    if not parity.holds:
        worst = max(parity.tasks, key=lambda task: parity.tasks[task].largest)
        raise ExportError(
            f"what the graph gives for '{worst}' differs from the run by "
            f"{parity.tasks[worst].largest:.2g}, more than {tolerance:g}; nothing was written"
        )
    return parity


def _told(parity: Parity) -> dict[str, Any]:
    return {**asdict(parity), "shortest": round(parity.shortest, 4)}


def _speed(source: Source, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Seconds for ten of audio, all tasks, from samples to answers."""
    seconds = min(SPEED_SECONDS, source.stretch_seconds)
    random = np.random.default_rng(1)
    samples = (0.1 * random.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)
    tasks = [*source.tasks]
    calls: dict[str, Any] = {"library": lambda: source.library((samples, SAMPLE_RATE), tasks)}
    threads = torch.get_num_threads()
    for name, folder in folders.items():
        calls[name] = partial(Package(folder, threads=threads), samples, tasks)
    taken = median_seconds(calls, REPEATS)
    return {"audio": seconds, "threads": threads, **taken}


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
        "seconds": _speed(source, {"onnx": folder, "int8": part}),
        "bytes_float32": report["bytes"],
        "bytes": _sizes(part),
    }
    if data:
        longest = max(source.upstreams, key=lambda up: up.plan.min_samples)
        report["scores"] = quality.scores(packages, data, longest, progress)
    return part


def default_folder(run: Path, format: Format, *, int8: bool) -> Path:
    """Beside the run: RUN-onnx, RUN-onnx-int8 or RUN-torch."""
    run = run.resolve()
    return run.with_name(f"{run.name}-{format}" + ("-int8" if int8 else ""))
