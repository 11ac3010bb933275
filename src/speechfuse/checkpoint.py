"""A run folder: what was asked, what was learned and what came out, and nothing unpickled.

recipe.yaml          resolved                upstreams.json    names, revisions, hashes
model.safetensors    what was trained        tasks.json        vocabularies and label sets
metrics.json         with intervals          data.json         hashes of the data
seen.json            corpora and speakers that it was trained on, and how much data of each split
log.csv              step, name, value       predictions/      references and predictions
checkpoints/         best and last           versions.txt      of the libraries
events.*             TensorBoard
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file

from speechfuse import __version__, build
from speechfuse.cache.shards import write_tensors
from speechfuse.catalog import of_others
from speechfuse.data.corpus import read_table, write_table
from speechfuse.data.manifests import manifest_name
from speechfuse.data.summary import DataSummary
from speechfuse.data.teachers import Seen, seen_from
from speechfuse.decision import Decision
from speechfuse.errors import RunError, damage
from speechfuse.model import FusionModel
from speechfuse.ops import file_hash
from speechfuse.recipe import Recipe, code_of, read_yaml
from speechfuse.runs import check_run, training_of
from speechfuse.types import Metric

_LIBRARIES = (
    "torch",
    "transformers",
    "lightning",
    "lhotse",
    "safetensors",
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
    "jiwer",
)
# Settings that may differ when a run goes on.
_FREE = (
    "store.folder",
    "store.budget_gb",
    "fusion.allow_repeats",
    "training.devices",
    "training.num_nodes",
    "training.strategy",
    "training.workers",
)

_REMEDY = "put the run's own back, or train into another folder"
_EVALUATE = "write it again with: speechfuse evaluate RUN"


class Run:
    """One run folder; files are written whole, under their final name only when complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock", timeout=0)

    def begin(self, recipe: Recipe) -> None:
        """Claim the folder for a recipe, or go on in it; a finished run's files stay as they are.

        No other process may begin it until this one calls `end`, or is gone.

        Raises:
            RunError: the folder belongs to another recipe, to other weights of an upstream, or
                another process is at work in it.
        """
        upstreams = self.check(recipe)
        if self.finished:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except NotImplementedError:  # the file system has no locks
            pass
        except Timeout as error:
            raise RunError(
                f"{self.folder} is being trained by another process; wait for it, or choose "
                "another folder"
            ) from error
        self._write_json("upstreams.json", upstreams)
        write_text(self.folder / "versions.txt", versions())
        mine = recipe.model_dump(mode="json")  # last: it makes the folder a run's
        write_text(self.folder / "recipe.yaml", yaml.safe_dump(mine, sort_keys=False))

    def end(self) -> None:
        """Leave the folder to others."""
        self._lock.release()

    def check_shared(self) -> None:
        """Raises RunError if another process began the folder and it is not seen from here."""
        if not (self.folder / "recipe.yaml").is_file():
            raise RunError(
                f"{self.folder} was begun by the first training process and is not seen on this "
                "machine; choose a folder that all machines share"
            )

    def check(self, recipe: Recipe) -> dict[str, dict[str, str]]:
        """The identities of the recipe's upstreams, if this folder may hold a run of it.

        Raises:
            RunError: the folder belongs to another recipe, or to other weights of an upstream; or
                there can be none, below a file.
            RecipeError: two upstreams of a new run are the same encoder.
        """
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not there.is_dir():
            raise RunError(f"{there} is a file, expected a folder for runs; choose another name")
        upstreams = build.identities(recipe)
        if not (self.folder / "recipe.yaml").is_file():
            build.refuse_equal_weights(recipe, upstreams)
            return upstreams
        remedy = "choose another folder or delete this one"
        if changed := recipe_changes(self.recipe(recipe), recipe):
            raise RunError(
                f"{self.folder} holds a run of another recipe (differs in "
                f"{', '.join(changed[:5])}); {remedy}"
            )
        for name, changed in self.moved(upstreams).items():
            raise RunError(
                f"{self.folder} was made with another upstream '{name}' (differs in "
                f"{', '.join(changed)}); put it back, or {remedy}"
            )
        return upstreams

    def moved(self, upstreams: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """By upstream, what of its identity is another than when the run was begun."""
        known, found = self.upstreams(), dict[str, list[str]]()
        for name, identity in upstreams.items():
            old: dict[str, Any] = dict(known.get(name, {}))
            if "config_sha256" in identity:  # the hashes decide, a later commit may have the same
                old = old | {"revision": identity.get("revision")}
            if changed := _changed(old, identity):
                found[name] = changed
        return found

    def recipe(self, own: Recipe | None = None) -> Recipe:
        """What was asked. own: a recipe of the user's, whose parts are trusted here, too.

        Raises:
            RunError: there is no run here.
            RecipeError: it is damaged, or names code that is not trusted.
        """
        path = check_run(self.folder) / "recipe.yaml"
        asked = read_yaml(path)
        if "processes" in asked.get("training", {}):  # what older versions called devices
            asked["training"]["devices"] = asked["training"].pop("processes")
        # Whether an encoder may be there twice was decided when the folder was made.
        with of_others(code_of(own) if own else ()):
            return build.read_recipe(asked, refuse_repeats=False, expand=False)

    def upstreams(self) -> dict[str, dict[str, str]]:
        """The identities of its upstreams when it was begun."""
        known = self._read_json("upstreams.json")
        with damage(self.folder / "upstreams.json", RunError, _REMEDY):
            return {name: dict(identity) for name, identity in known.items()}

    def check_data(self, marks: Mapping[str, Mapping[str, str]]) -> None:
        """Compare the data of each task and split with what the run was begun with, if it was.

        Raises:
            RunError: a corpus has changed since.
        """
        if not (self.folder / "data.json").is_file():
            return
        if changed := _changed(self._read_json("data.json"), marks):
            raise RunError(
                f"{self.folder} was made with other data: {', '.join(changed)} changed since; "
                "put the corpus back, or choose another folder"
            )

    def save_tasks(self, states: Mapping[str, Any], marks: Mapping[str, Mapping[str, str]]) -> None:
        """states: vocabularies and label sets. marks: of the data of each task and split."""
        self._write_json("tasks.json", states)
        self._write_json("data.json", marks)

    def tasks(self) -> dict[str, Any]:
        """Vocabularies and label sets.

        Raises:
            RunError: none here, or others than its weights were trained with.
        """
        states, weights = self._read_json("tasks.json"), self.folder / "model.safetensors"
        if {*states} != {*read_yaml(self.folder / "recipe.yaml").get("tasks", ())}:
            raise RunError(
                f"tasks.json in {self.folder} has other tasks than the recipe.yaml beside it "
                f"({', '.join(states) or 'none'}); put the run's own back"
            )
        if weights.is_file() and self._made_with(weights) not in (None, self._tasks_hash()):
            raise RunError(
                f"tasks.json in {self.folder} is not what {weights.name} was trained with: it "
                "would give other words and labels to what was learned; put the run's own back"
            )
        return states

    def save_seen(self, seen: Iterable[Seen], data: Mapping[str, DataSummary]) -> None:
        """Whom it is trained and developed on, and the teachers of its labels were.

        data: of each task.
        """
        once = dict.fromkeys(seen)
        about = {name: one.to_dict() for name, one in data.items()}
        self._write_json("seen.json", {"seen": [asdict(one) for one in once], "data": about})

    def seen(self) -> tuple[Seen, ...]:
        """The same; of an older run without it, all speakers of its corpora."""
        about = self._seen()
        if about is None:
            paths = [Path(entry.corpus) for entry in self.recipe().tasks.values()]
            named = (manifest_name(path) if path.is_file() else path.name for path in paths)
            return tuple(Seen(name) for name in dict.fromkeys(named))
        with damage(self.folder / "seen.json", RunError, _REMEDY):
            return seen_from(about["seen"])

    def data(self) -> dict[str, DataSummary]:
        """How much data each task has; nothing of an older run, which did not keep it."""
        about = self._seen() or {}
        with damage(self.folder / "seen.json", RunError, _REMEDY):
            return {name: DataSummary.read(one) for name, one in about.get("data", {}).items()}

    def _seen(self) -> dict[str, Any] | None:
        """seen.json; none of an older run."""
        return self._read_json("seen.json") if (self.folder / "seen.json").is_file() else None

    def save_model(self, model: FusionModel) -> None:
        tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        metadata = {"format": "pt", "speechfuse": __version__, "tasks_sha256": self._tasks_hash()}
        write_tensors(self.folder / "model.safetensors", tensors, metadata)

    def load_model(self, model: FusionModel) -> None:
        """Raises RunError if the run is not trained yet or its weights do not fit."""
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise RunError(
                f"{self.folder} is not trained yet; train it: {training_of(self.folder)}"
            )
        try:
            model.load_state_dict(load_file(path))
        except Exception as error:
            raise RunError(f"{path} does not fit the recipe beside it: {error}") from error

    def _made_with(self, weights: Path) -> str | None:
        """The hash of the vocabularies and label sets that the weights say they mean."""
        with damage(weights, RunError, _REMEDY), safe_open(weights, "pt") as file:
            hashed: str | None = (file.metadata() or {}).get("tasks_sha256")
        return hashed

    def _tasks_hash(self) -> str:
        """Of the vocabularies and label sets that the weights mean."""
        return file_hash([self.folder / "tasks.json"])

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._write_json("metrics.json", metrics)

    def decisions(self) -> dict[str, Decision]:
        """Thresholds by task; none of a run that was evaluated before there were any.

        Raises:
            RunError: they are damaged.
        """
        if not self.finished:
            return {}
        kept = self._read_json("metrics.json").get("thresholds", {})
        with damage(self.folder / "metrics.json", RunError, _EVALUATE):
            return {name: Decision.from_dict(one) for name, one in kept.items()}

    def metrics(self) -> dict[str, Any]:
        """Raises RunError if there are none, or they are no metrics."""
        metrics = self._read_json("metrics.json")
        with damage(self.folder / "metrics.json", RunError, "delete it and train again to go on"):
            for scores in (*metrics["dev"].values(), *metrics["test"].values()):
                for name, kept in scores.items():
                    metric = Metric(**kept)
                    _ = [float(end) for end in (metric.value, *metric.ends, metric.speakers)]
                    scores[name] = asdict(metric)
        return metrics

    @property
    def finished(self) -> bool:
        """Trained and evaluated."""
        return (self.folder / "metrics.json").is_file()

    def save_table(self, split: str, task: str, rows: Sequence[dict[str, str]]) -> None:
        (self.folder / "predictions").mkdir(exist_ok=True)
        if (self.folder / "predictions").is_symlink():
            raise RunError(
                f"predictions in {self.folder} is a link, and would be written elsewhere; delete it"
            )
        path = self._table(split, task)
        part = path.with_name(f".{path.name}.part")
        with written(path, part):
            part.unlink(missing_ok=True)
            write_table(part, rows)
            part.replace(path)

    def table(self, split: str, task: str) -> list[dict[str, str]]:
        path = self._table(split, task)
        if not path.is_file():
            raise RunError(f"{self.folder} has no predictions for {task} on {split}")
        with damage(path, RunError, _EVALUATE):
            rows = read_table(path)
            if any(None in row or None in row.values() for row in rows) or not rows:
                raise ValueError("a row lacks a column")
        return rows

    def log(self) -> list[tuple[int, str, float]]:
        """Every logged number as (step, name, value)."""
        path = self.folder / "log.csv"
        with damage(path, RunError, "delete it; only its curves are lost"):
            lines = path.read_text().splitlines()[1:] if path.is_file() else []
            rows = (line.split(",") for line in lines)
            return [(int(step), name, float(value)) for step, name, value in rows]

    def _table(self, split: str, task: str) -> Path:
        return self.folder / "predictions" / f"{split}_{task}.tsv"

    def _write_json(self, name: str, data: Any) -> None:
        write_text(self.folder / name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{self.folder} has no {name}; is the run finished?")
        with damage(path, RunError, _REMEDY):
            return dict(json.loads(path.read_text()))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and never through a link that lies there.

    Raises:
        RunError: the disk is full, or nothing may be written there.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """The same of bytes."""
    part = path.with_name(f".{path.name}.part")
    with written(path, part):
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            file.write(data)
        part.replace(path)


@contextmanager
def written(path: Path, part: Path) -> Iterator[None]:
    """What cannot be written within is one error of the user's, and the part of it goes."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> RunError:
    """What to say of a file that cannot be written."""
    return RunError(
        f"cannot write {path} ({error.strerror or error}); what was finished is kept: make room "
        "or see to its permission, and the same command goes on"
    )


def versions() -> str:
    """Python and the libraries that decide numbers, one a line."""
    lines = [f"speechfuse {__version__}", f"python {platform.python_version()}"]
    lines += [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    if find_spec("peft"):  # an extra
        lines.append(f"peft {metadata.version('peft')}")
    return "\n".join([*lines, f"platform {platform.platform()}", ""])


def recipe_changes(old: Recipe, new: Recipe) -> list[str]:
    """Dotted names of the settings that differ, but for those that change no result."""
    return _changed(old.model_dump(mode="json"), new.model_dump(mode="json"))


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted names whose values differ."""
    found = []
    for key in sorted(set(old) | set(new)):
        name = f"{path}.{key}" if path else str(key)
        one, other = old.get(key), new.get(key)
        if name in _FREE or one == other:
            continue
        nested = isinstance(one, Mapping) and isinstance(other, Mapping)
        found += _changed(one, other, name) if nested else [name]  # type: ignore[arg-type]
    return found
