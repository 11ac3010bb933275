"""Tell Lightning which of the processes that train together this one is, and how they share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from speechfuse.ranks import Rank
from speechfuse.sharding import Sharded


def trainer_options(rank: Rank, strategy: str = "ddp") -> dict[str, Any]:
    """How Lightning places the work; only gradients travel, buffers are alike or rank 0's."""
    if rank.count == 1:
        return {"accelerator": "auto", "devices": 1}
    options: dict[str, Any] = {
        "cluster_environment": Place(rank),
        "timeout": timedelta(seconds=rank.timeout),
    }
    if strategy == "fsdp":
        chosen: Any = Sharded(**options)
    else:
        options["find_unused_parameters"] = True  # those of the other tasks
        chosen = DDPStrategy(**options, broadcast_buffers=False)
    return {
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": rank.per_node,
        "num_nodes": rank.count // rank.per_node,
        "strategy": chosen,
    }


class Place(ClusterEnvironment):
    """A rank, as Lightning asks for it."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._rank.address

    @property
    def main_port(self) -> int:
        return self._rank.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._rank.count

    def set_world_size(self, size: int) -> None:
        count = self._rank.count
        assert size == count, f"Lightning counts {size} processes, there are {count}"

    def global_rank(self) -> int:
        return self._rank.number

    def set_global_rank(self, rank: int) -> None:
        number = self._rank.number
        assert rank == number, f"Lightning calls process {number} {rank}"

    def local_rank(self) -> int:
        return self._rank.local

    def node_rank(self) -> int:
        return self._rank.node
