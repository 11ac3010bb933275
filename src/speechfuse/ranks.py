"""The place of a process among those on this machine that train together."""

from __future__ import annotations

from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from speechfuse.errors import RecipeError

T = TypeVar("T")
TIMEOUT = 600.0  # seconds that a process waits for another before it gives up


class Rank(ClusterEnvironment):
    """The place of this process among those that train together; Lightning asks it for theirs."""

    def __init__(self, number: int = 0, count: int = 1, port: int = 0, asked: Any = None) -> None:
        """number: from 0. count: of processes. asked: an event, that all end after this step."""
        super().__init__()
        self.number, self.count, self._port, self._asked = number, count, port, asked
        self._timeout = TIMEOUT

    def part(self, utterances: int) -> slice:
        """Which utterances of a batch are its own; a batch of too few is computed by all."""
        return slice(self.number, None, self.count) if self.parts(utterances) > 1 else slice(None)

    def parts(self, utterances: int) -> int:
        """Into how many a batch is split."""
        return self.count if utterances >= self.count else 1

    def asked(self) -> bool:
        """Whether the user wants an end."""
        return self._asked is not None and self._asked.is_set()

    def trainer_options(self) -> dict[str, Any]:
        """How Lightning places the work; only gradients travel, buffers are alike or rank 0's."""
        if self.count == 1:
            return {"accelerator": "auto", "devices": 1}
        strategy = DDPStrategy(
            cluster_environment=self,
            timeout=timedelta(seconds=self._timeout),
            find_unused_parameters=True,  # those of the other tasks
            broadcast_buffers=False,
        )
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        return {"accelerator": kind, "devices": self.count, "strategy": strategy}

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.count

    def set_world_size(self, size: int) -> None:
        assert size == self.count, f"Lightning counts {size} processes, there are {self.count}"

    def global_rank(self) -> int:
        return self.number

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.number, f"Lightning calls process {self.number} {rank}"

    def local_rank(self) -> int:
        return self.number

    def node_rank(self) -> int:
        return 0


def in_turns(own: list[T], count: int) -> list[T]:
    """What all processes have: the first of each, then the second of each, the same for all."""
    if count == 1:
        return own
    everyone: list[Any] = [None] * count
    distributed.all_gather_object(everyone, own)
    return [one for turn in zip_longest(*everyone) for one in turn if one is not None]


def check_devices(count: int) -> None:
    """Raises RecipeError if several processes would have to share a GPU."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < count:
        raise RecipeError(
            f"training.processes is {count}, each needs a GPU and this machine has {gpus}; use so "
            "many, or train on the CPU with CUDA_VISIBLE_DEVICES= before the command"
        )
