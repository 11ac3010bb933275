"""What stands beside the graphs: config.json, vocabularies, and run.py, which reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from speechfuse import __version__
from speechfuse.audio import SAMPLE_RATE
from speechfuse.checkpoint import write_text
from speechfuse.contracts import Task
from speechfuse.errors import ExportError
from speechfuse.export.loading import Source
from speechfuse.export.plans import GraphPlan
from speechfuse.heads.ctc_head import CTCHead
from speechfuse.heads.text import Text
from speechfuse.tasks.classification import Classification
from speechfuse.tasks.diarization import Diarization
from speechfuse.tasks.intent import Intent
from speechfuse.tasks.language import LanguageToken
from speechfuse.tasks.phones import Phones
from speechfuse.tasks.recognition import Recognition
from speechfuse.text import Pieces

HERE = Path(__file__).parent


def write_about(
    source: Source, plans: Sequence[GraphPlan], folder: Path, format: Literal["onnx", "torch"]
) -> None:
    """config.json, vocabularies, and what asks the package."""
    end = "pt2" if format == "torch" else "onnx"
    graphs = {
        f"{one.name}.{end}": {"inputs": [*one.inputs], "outputs": [*one.outputs]} for one in plans
    }
    config = {
        "format": format,
        "precision": "float32",
        "speechfuse": __version__,
        "sample_rate": SAMPLE_RATE,
        "min_samples": source.min_samples,
        "pad_to": plans[0].example[0].shape[1] if format == "torch" else 0,
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
    read = source.graph.model.reader or source.graph.model.fusion_of(name)
    entry: dict[str, Any] = {
        "outputs": source.graph.outputs[name],
        "frame_rate": read.frame_rate / (head.join if isinstance(head, CTCHead) else 1),
    }
    if name in source.prompts:
        entry["prompt"] = source.prompts[name]
    if isinstance(head, Text):
        entry |= {
            "decoder": f"decoder-{name}.{end}",
            "max_tokens": head.max_tokens,
            "beam_size": head.beam_size,
            "length_penalty": head.length_penalty,
        }
    if isinstance(head, CTCHead) and head.search == "beam":
        entry["beam_size"] = head.beam_size
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
        decision = source.reference.decisions.get(name)
        return entry | {"answers": "vector", "threshold": decision and decision.threshold}
    raise ExportError(
        f"task '{name}' is a {type(task).__name__}, which run.py cannot put into words; those of "
        "speechfuse can be exported"
    )
