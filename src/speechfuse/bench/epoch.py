"""An epoch on stored layers against the trained part alone, and against running the encoder.

All through `fit`, as a recipe is trained: Lightning, batches drawn by Lhotse, logging. What is
compared differs in where a batch comes from: the store, the store with the next batch laid out in a
thread meanwhile (`training.workers: 1`), or layers that lie in memory as float32.
The trained part alone is a bare loop over batches in memory: loss, gradient, clipping, optimiser.
With the encoder means this loop and reading the audio through the encoder again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, cast

import numpy as np
import soundfile
import torch
from torch.optim import Optimizer

from speechfuse import build
from speechfuse.audio import SAMPLE_RATE
from speechfuse.bench.speech import fill_at_random, natural_durations
from speechfuse.cache.store import Store
from speechfuse.checkpoint import Run
from speechfuse.clips import read_batch
from speechfuse.contracts import Upstream
from speechfuse.data.manifests import prepare
from speechfuse.data.stream import Source, draw_batches
from speechfuse.extract import open_store
from speechfuse.fit import fit, fit_together
from speechfuse.inputs import Inputs
from speechfuse.measure import Clock, best_device, median_ratio, setting
from speechfuse.model import FusionModel
from speechfuse.ops import moved
from speechfuse.optim import make_optimizer
from speechfuse.recipe import Recipe
from speechfuse.steps import load_batch
from speechfuse.taskdata import TaskData, load_tasks
from speechfuse.types import Batch, LayerStack, Table, Utterance

HUBERT: Mapping[str, Any] = {"model_type": "hubert"}  # the base shape is the default
HEADS: Mapping[str, Mapping[str, Any]] = {
    "emotion": {"kind": "classifier"},
    "asr": {"kind": "ctc", "lstm_layers": 2, "lstm_dim": 1024, "project": 1024},
}
CASES = (("emotion", "weighted_sum"), ("emotion", "hconv"), ("asr", "weighted_sum"))
EVALUATED = 4  # utterances of each other split, which are not measured


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch are medians, ratios those within a turn."""

    task: str
    interface: str
    stored: float
    ahead: float  # the same, the next batch read meanwhile
    held: float  # through `fit`, layers in memory
    alone: float  # the bare loop
    encoded: float  # the encoder beside it
    overhead: float  # stored / alone
    overhead_ahead: float  # ahead / alone
    gain: float  # encoded / stored


def epoch_table(
    seconds: float, repeats: int, clock: Clock = perf_counter, config: Mapping[str, Any] = HUBERT
) -> Table:
    """What `bench_epoch` measures, for reading."""
    title = (
        f"Epoch of {seconds:g} s of speech in batches of 60 s, float16 stored, {best_device()}, "
        f"{setting(repeats, clock)}"
    )
    rows = [
        [
            f"{e.task}, {e.interface}",
            *(f"{1000 * s:.0f}" for s in (e.stored, e.ahead, e.held, e.alone, e.encoded)),
            f"{e.overhead:.2f}",
            f"{e.overhead_ahead:.2f}",
            f"{e.gain:.1f}",
            f"{e.encoded / e.alone:.1f}",
        ]
        for e in bench_epoch(seconds, repeats, clock, config)
    ]
    columns = ["", "stored ms", "read ahead ms", "in memory ms", "trained part ms"]
    columns += ["with encoder ms", "stored / trained part", "read ahead / trained part"]
    columns += ["encoder / stored", "encoder / trained part"]
    return title, columns, rows


def bench_epoch(
    seconds: float,
    repeats: int,
    clock: Clock = perf_counter,
    config: Mapping[str, Any] = HUBERT,
    cases: Sequence[tuple[str, str]] = CASES,
) -> Iterator[Epoch]:
    """Each task and interface in turns."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder), seconds, config)
        encoder = None
        for task, interface in cases:
            one = place.training(task, interface)
            encoder = encoder or one.encoder(place.upstream(one.recipe), clock)
            yield _epoch(one, encoder, repeats, clock)


def _epoch(one: Training, encoder: float, repeats: int, clock: Clock) -> Epoch:
    (store,) = one.stores
    held = cast(Inputs, Held(store, one.batches))
    ways: dict[str, Callable[[], float]] = {
        "stored": lambda: one.epoch([store], clock),
        "ahead": lambda: one.epoch([store], clock, workers=1),
        "held": lambda: one.epoch([held], clock),
        "alone": lambda: one.alone(clock),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(way())
    alone = median(taken["alone"])
    encoded = encoder + alone
    return Epoch(
        one.data.name,
        one.recipe.fusion.interface.kind,
        median(taken["stored"]),
        median(taken["ahead"]),
        median(taken["held"]),
        alone,
        encoded,
        overhead=median_ratio(taken["stored"], taken["alone"]),
        overhead_ahead=median_ratio(taken["ahead"], taken["alone"]),
        gain=encoded / median(taken["stored"]),
    )


class Place:
    """A corpus of noise with labels and texts, an encoder drawn at random, and a filled store."""

    def __init__(self, folder: Path, seconds: float, config: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._encoder(config)
        self.manifest = self._speech(seconds)
        prepare(self.manifest, folder / "corpus", name="bench")

    def _encoder(self, config: Mapping[str, Any]) -> None:
        folder = self.folder / "encoder"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))

    def _speech(self, seconds: float) -> Path:
        random = np.random.default_rng(0)
        splits = {"train": natural_durations(seconds)}
        splits |= {split: [2.0] * EVALUATED for split in ("dev", "test")}
        rows = []
        for split, durations in splits.items():
            for number, duration in enumerate(durations):
                name = f"{split}-{number}"
                samples = 0.1 * random.standard_normal(int(duration * SAMPLE_RATE))
                soundfile.write(self.folder / f"{name}.wav", samples, SAMPLE_RATE)
                letters = random.choice([*"abcdefghijklmnopqrstuvwxyz "], int(12 * duration))
                row = {"id": name, "audio": f"{name}.wav", "split": split}
                row |= {"text": "a" + "".join(letters).strip(), "speaker": name}
                rows.append(row | {"emotion": ("calm", "loud")[number % 2]})
        path = self.folder / "manifest.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def recipe(self, task: str, interface: str, seeds: Sequence[int] = (0,), **more: Any) -> Recipe:
        """As a user writes it. seeds: one for each encoder. more: other sections."""
        source = {"kind": "huggingface", "source": str(self.folder / "encoder")}
        source |= {"weights": "random", **more.pop("options", {})}
        return build.read_recipe(
            {
                "upstreams": {f"up{seed}": {**source, "seed": seed} for seed in seeds},
                "fusion": {"merge": {"kind": "add"}, "interface": {"kind": interface}},
                "tasks": {task: {"corpus": str(self.folder / "corpus"), "head": HEADS[task]}},
                "store": {"folder": str(self.folder / "stores")},
                **more,
            }
        )

    def upstream(self, recipe: Recipe) -> Upstream:
        """Of a recipe that has one."""
        (name,) = recipe.upstreams
        return build.build_upstream(recipe, name)

    def training(self, task: str, interface: str) -> Training:
        recipe = self.recipe(task, interface)
        tasks = load_tasks(recipe)
        store = open_store(recipe, "up0", self.upstream(recipe))
        if missing := store.missing(u for s in tasks[task].splits.values() for u in s):
            fill_at_random(store, missing)
        return Training(recipe, tasks, [store], self.folder / "runs" / f"{task}-{interface}")


class Training:
    """One task on stored layers, and the batches of an epoch as a run draws them."""

    def __init__(
        self, recipe: Recipe, tasks: Mapping[str, TaskData], stores: Sequence[Store], folder: Path
    ) -> None:
        (self.data,) = tasks.values()
        self.tasks, self.stores, self.folder = tasks, stores, folder
        source = Source(self.data.splits["train"], recipe.training.batch_seconds)
        steps = max(2, round(source.batches))
        changes = {"steps": steps + 1, "evaluate_every": steps + 1}
        self.recipe = recipe.model_copy(
            update={"training": recipe.training.model_copy(update=changes)}
        )
        drawn = draw_batches({self.data.name: source}, [self.data.name] * (steps + 1), recipe.seed)
        self.batches = [members for _, members in drawn][1:]  # the first step is warming up
        self._runs = 0

    def model(self) -> FusionModel:
        names = {name: data.task for name, data in self.tasks.items()}
        return build.build_model(self.recipe, [store.spec for store in self.stores], names)

    def epoch(self, sources: Sequence[Inputs], clock: Clock, workers: int = 0) -> float:
        """Seconds of the steps of an epoch within `fit`, which tells when each is taken."""
        training = self.recipe.training.model_copy(update={"workers": workers})
        recipe = self.recipe.model_copy(update={"training": training})
        self._runs += 1
        run = Run(self.folder / str(self._runs))
        run.begin(recipe)
        run.save_tasks({name: data.task.state() for name, data in self.tasks.items()}, {})
        stamps: list[float] = []

        def progress(what: str, done: int, total: int) -> None:
            if what == "training steps":
                stamps.append(clock())

        start = fit if recipe.training.devices in (None, 1) else fit_together
        start(recipe, self.model(), self.tasks, {self.data.name: sources}, run, progress)
        assert len(stamps) == len(self.batches) + 1, "a step was not told"
        return stamps[-1] - stamps[0]

    def alone(self, clock: Clock) -> float:
        """Seconds of a bare loop over batches in memory."""
        device = best_device()
        model = self.model().to(device).train()
        optimizer = make_optimizer(self.recipe.training, model)
        batches = [
            moved(load_batch(self.data, self.stores, one, targets=True), device)
            for one in self.batches
        ]
        self._step(model, optimizer, batches[0])  # warming up
        began = clock()
        for batch in batches:
            self._step(model, optimizer, batch)
        return clock() - began

    def encoder(self, upstream: Upstream, clock: Clock) -> float:
        """Seconds of reading an epoch's audio through the encoder, of which one batch is timed."""
        device = best_device()
        upstream.load()
        upstream.to(device)
        first, seconds = self.batches[0], [sum(u.duration or 0.0 for u in b) for b in self.batches]
        with torch.no_grad():
            upstream(moved(read_batch(first[:1], upstream), device))  # warming up
            began = clock()
            stack: LayerStack = upstream(moved(read_batch(first, upstream), device))
            float(stack.layers[-1].sum())  # a GPU answers when it is through
            return (clock() - began) * sum(seconds) / seconds[0]

    def _step(self, model: FusionModel, optimizer: Optimizer, batch: Batch) -> None:
        assert batch.targets is not None
        found = model.loss(batch.inputs, batch.task, batch.targets)
        (found.total / max(1, found.count)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.recipe.training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(found.total.detach())


class Held:
    """A store's batches in memory, as float32; others are read."""

    def __init__(self, store: Store, batches: Sequence[Sequence[Utterance]]) -> None:
        self.store, self.spec = store, store.spec
        self._kept = {tuple(u.id for u in one): store.batch(one) for one in batches}

    def batch(self, utterances: Sequence[Utterance], spans: Any = None) -> LayerStack:
        kept = self._kept.get(tuple(u.id for u in utterances))
        return self.store.batch(utterances, spans) if kept is None else kept

    def frames(self, utterance: Utterance) -> int:
        return self.store.frames(utterance)
