"""What a user does with files that others made, as functions that another process can run."""

import re
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from mutating import harmed, harmed_sound
from speechfuse import build
from speechfuse.audio import pad_clips, read_audio
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.data.corpus import read_corpus
from speechfuse.data.manifests import prepare
from speechfuse.errors import RunError, SpeechFuseError
from speechfuse.evaluate import evidence_of
from speechfuse.extract import fill_stores
from speechfuse.pipeline.recordings import Recording, Samples
from speechfuse.pipeline.speech_model import SpeechModel
from speechfuse.predict import predict_files
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from speechfuse.upstreams.huggingface import HuggingFace


def write_harmed(path: Path, whole: bytes, seed: int) -> None:
    path.write_bytes(harmed(path, whole, seed))


def write_harmed_sound(path: Path, whole: bytes, others: Iterable[bytes], seed: int) -> None:
    path.write_bytes(harmed_sound(whole, [*others], seed))


def hear(path: Path) -> None:
    """Reads a recording as training does, and as predict and the service do, all of it."""
    refused = None
    for read in (lambda: [read_audio(path)], lambda: _stretches(path, 1.0), lambda: _opened(path)):
        try:
            for samples in read():
                assert samples.dtype == np.float32
                assert np.isfinite(samples).all()
        except SpeechFuseError as error:
            refused = error
    if refused:
        raise refused


def _stretches(given: Any, longest: float) -> Iterable[Samples]:
    return (samples for _, samples in Recording(given).stretches(longest))


def _opened(path: Path) -> Iterable[Samples]:
    with path.open("rb") as file:
        yield from _stretches(file, 20.0)


def plan(path: Path) -> None:
    build.stack_specs(read_recipe(path))


def import_corpus(manifest: Path, out: Path) -> None:
    try:
        prepare(manifest, out)
    except SpeechFuseError:
        assert not out.exists()
        raise
    shutil.rmtree(out)


def open_corpus(folder: Path) -> None:
    read_corpus(folder)


def encode(folder: Path) -> None:
    HuggingFace(source=str(folder))(pad_clips([torch.zeros(3000)]))


def use_run(folder: Path, name: str, clip: Path) -> None:
    """Does with a run folder what reads the file of this name."""
    run = Run(folder)
    if name in ("recipe.yaml", "upstreams.json", "tasks.json", "model.safetensors"):
        list(predict_files(folder, [clip]))
    elif name == "metrics.json":
        run.metrics()
        list(predict_files(folder, [clip]))  # it has the thresholds
    elif name == "data.json":
        tasks = load_tasks(run.recipe(), run.tasks())
        run.check_data({name: data.marks() for name, data in tasks.items()})
    elif name == "seen.json":
        run.seen()
    elif name == "log.csv":
        run.log()
    else:
        evidence_of(run, "test")


def stored_layers(recipe: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What a task reads of its store, made again where it is damaged."""
    read = read_recipe(recipe)
    tasks = load_tasks(read)
    (store, *_) = fill_stores(read, tasks)["emotion"]
    return store.batch(tasks["emotion"].splits["train"]).layers


def mend_store(recipe: dict[str, Any], whole: Path, expected: list[torch.Tensor]) -> None:
    """Layers as they were, or a damaged plan that is named; the store is put back then."""
    stores = Path(recipe["store"]["folder"])
    try:
        found = stored_layers(recipe)
    except RunError as error:
        if not re.search("plan-.* is damaged", str(error)):
            raise ValueError("not the plan is blamed") from error
        raise
    else:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        shutil.rmtree(stores)
        shutil.copytree(whole, stores)


def go_on_training(folder: Path, whole: Path) -> None:
    """Goes on from checkpoints, one of which is harmed, and puts the others back."""
    (folder / "metrics.json").unlink(missing_ok=True)
    try:
        train_run(read_recipe(folder / "recipe.yaml"), folder)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)


def answer_long(run: Path, recording: Path) -> None:
    """Answers a recording of hours, and looks whether all of it was joined in order."""
    answer = SpeechModel(run)(recording)
    with soundfile.SoundFile(recording) as sound:
        assert abs(answer.duration - sound.frames / sound.samplerate) < 0.01
    starts = [word.start for word in answer["asr"].words]
    assert starts == sorted(starts)
    stretches = answer["emotion"].stretches
    assert stretches[-1].end == answer.duration
    gaps = (b.start - a.end for a, b in pairwise(stretches))
    assert max(map(abs, gaps), default=0) < 0.01
