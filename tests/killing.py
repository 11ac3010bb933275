"""Extractions and trainings in processes of their own, forked from one that imported everything."""

import os
import signal
import threading
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["killing", "speechfuse.extract", "speechfuse.train", "lhotse.dataset"]
)
SHARD_BYTES, BATCH_SECONDS = 12_000, 2.0  # nine shards of the tones


def begin(
    recipe: dict[str, Any], made: Path | None = None, shard_bytes: int = SHARD_BYTES
) -> BaseProcess:
    """made: a file that gets a line for each shard that is written."""
    process = CONTEXT.Process(target=_extract, args=(recipe, made, shard_bytes))
    process.start()
    return process


def _extract(data: dict[str, Any], made: Path | None, shard_bytes: int) -> None:
    import torch

    from speechfuse import extract
    from speechfuse.build import read_recipe
    from speechfuse.cache import plans, shards
    from speechfuse.taskdata import load_tasks

    torch.set_num_threads(1)
    plans.SHARD_BYTES = shard_bytes
    extract.batch_seconds = lambda _: BATCH_SECONDS
    write = shards.write_shard

    def written(path: Path, tensors: Any, layers: Any) -> None:
        write(path, tensors, layers)
        if made:
            with made.open("a") as file:
                file.write(path.name + "\n")

    shards.write_shard = written
    recipe = read_recipe(data)
    extract.extract(recipe, extract.extraction_jobs(recipe, load_tasks(recipe)))


def begin_training(
    recipe: dict[str, Any], folder: Path, steps: Path, stop: int | None = None, wait: float = 0.0
) -> BaseProcess:
    """steps: a file that gets the number of each. stop: SIGKILL comes `wait` seconds after it."""
    process = CONTEXT.Process(target=_train, args=(recipe, folder, steps, stop, wait))
    process.start()
    return process


def _train(data: dict[str, Any], folder: Path, steps: Path, stop: int | None, wait: float) -> None:
    import torch

    from speechfuse.build import read_recipe
    from speechfuse.train import train_run

    torch.set_num_threads(1)

    def taken(what: str, done: int, total: int) -> None:
        if what != "training steps":
            return
        with steps.open("a") as file:
            file.write(f"{done}\n")
        if done == stop:
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()

    train_run(read_recipe(data), folder, taken)
