"""Join the processes that train together, wherever they were begun."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from speechfuse.errors import RecipeError, RunError
from speechfuse.ranks import Rank, check_devices
from speechfuse.recipe import TrainingRecipe
from speechfuse.watch import AGAIN, Watch

_GLOO = re.compile("gloo|pair closure", re.IGNORECASE)  # its errors have no type of their own


def launched_rank() -> Rank | None:
    """The place that torchrun or srun gave this process; None if neither began it.

    Raises:
        RunError: srun was asked in a way in which the places cannot be told.
    """
    found = _begun_by()
    if found is None:
        return None
    return Rank(
        found.global_rank(),
        found.world_size(),
        found.main_port,
        address=found.main_address,
        node=found.node_rank(),
        local=found.local_rank(),
    )


def _begun_by() -> Any:
    """The environment as Lightning reads it, which takes seconds to import."""
    if distributed.is_torchelastic_launched():
        from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        try:
            return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
        except RuntimeError as error:
            raise RunError(f"SLURM: {error}") from error
    return None


def check_places(training: TrainingRecipe, rank: Rank) -> None:
    """Raises RecipeError if there are other processes than asked for, or too few GPUs."""
    devices, nodes = training.devices, training.num_nodes
    if training.strategy == "fsdp" and not torch.cuda.is_available():
        raise RecipeError(
            "training.strategy is fsdp, which needs GPUs, and this machine shows none; use ddp"
        )
    if rank.launched:
        check_devices(rank.local + 1)
        asked = (devices or 1) * (nodes or 1)
        fits = rank.count == asked if devices and nodes else rank.count % asked == 0
        if not fits:
            raise RecipeError(
                f"training.devices is {devices} on training.num_nodes {nodes}, and torchrun or "
                f"srun began {rank.count} processes; leave both out, they count"
            )
        return
    check_devices(devices or 1)
    if (nodes or 1) > 1:
        raise RecipeError(
            f"training.num_nodes is {nodes}, and nothing began this command on other machines; "
            "begin it there by srun or torchrun, docs/scale.md has both"
        )


@contextmanager
def joined(rank: Rank) -> Iterator[None]:
    """Within, gradients and numbers travel; one that fails or is lost ends all of them.

    Raises:
        RunError: not all came, or another was lost.
    """
    if rank.count == 1:
        yield
        return
    names = _meet(rank)
    watch = Watch(rank.store.clone(), rank.number, names, rank.lost, rank.silence)
    try:
        yield
        rank.wait_for_all()
    except KeyboardInterrupt:  # of all, after the same step
        watch.end()
        rank.leave()
        raise
    except Exception as error:
        if _tells_of_a_loss(error):
            watch.wait()
            watch.end()
            what = str(error).strip().splitlines()[0]
            raise RunError(
                f"{names[rank.number]} waits for another in vain ({what}); {AGAIN}"
            ) from error
        watch.end()  # first: it would end this process too
        with suppress(RuntimeError):
            watch.tell(error)
        raise
    watch.end()
    rank.leave()
    distributed.destroy_process_group()


def _tells_of_a_loss(error: Exception) -> bool:
    """Whether torch waited for another process in vain. What a disk in the network says is not."""
    from_gloo = type(error) is RuntimeError and _GLOO.search(str(error)) is not None
    return from_gloo or isinstance(error, distributed.DistError)


def _meet(rank: Rank) -> Sequence[str]:
    """Of each process what it is called. A GPU has NCCL, and the CPU gloo."""
    where = f"{rank.address}:{rank.port}"
    url = f"tcp://{where}?rank={rank.number}&world_size={rank.count}"
    limit = timedelta(seconds=rank.timeout)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank.local)
    try:
        store, *_ = next(rendezvous(url, timeout=limit))
        distributed.init_process_group(
            "nccl" if gpu else "gloo",
            store=store,
            rank=rank.number,
            world_size=rank.count,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"training process {rank.number + 1} of {rank.count} did not meet the others at "
            f"{where} ({str(error).splitlines()[0]}); begin all, where they reach each other"
        ) from error
    rank.store = store.clone()
    places: list[Any] = [None] * rank.count
    distributed.all_gather_object(places, (rank.node, rank.local, socket.gethostname()))
    nodes = [node for node, *_ in places]
    rank.per_node = nodes.count(rank.node)
    if any(n != node * rank.per_node + local for n, (node, local, _) in enumerate(places)):
        raise RunError(
            "the processes are not numbered machine by machine, as many on each; with srun use "
            "--ntasks-per-node and --distribution=block"
        )
    several = len(set(nodes)) > 1
    return [
        f"training process {n + 1} of {rank.count}" + (f" on {host}" if several else "")
        for n, (*_, host) in enumerate(places)
    ]
