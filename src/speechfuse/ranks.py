"""The place of a process among those that train together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import distributed

from speechfuse.errors import RecipeError
from speechfuse.watch import SILENCE

T = TypeVar("T")
TIMEOUT = 600.0  # seconds that a process waits for another before it gives up
LEAVE = 10.0  # seconds for which one that leaves is waited for
LOOK = 0.2  # seconds between two looks whether the others are here


class Rank:
    """The place of this process among those that train together."""

    def __init__(
        self,
        number: int = 0,
        count: int = 1,
        port: int = 0,
        asked: Any = None,
        *,
        address: str = "127.0.0.1",
        node: int = 0,
        local: int | None = None,
    ) -> None:
        """number: from 0. count: of processes. asked: an event, that all end after this step.

        address, port: where the first one is met. node, local: which machine, and which process of
        it, as torchrun or srun say; left out, they were begun by another process on one machine.
        """
        self.number, self.count, self._asked = number, count, asked
        self.address, self.port = address, port
        self.node, self.local = node, number if local is None else local
        self.launched = local is not None
        self.per_node = count  # of several machines it is known once they are joined
        self.lost: Callable[[str], None] = _end  # called beside all else when another is lost
        self.store: Any = None  # what joined processes tell each other
        self.timeout, self.silence, self._waits = TIMEOUT, SILENCE, 0

    def part(self, utterances: int) -> slice:
        """Which utterances of a batch are its own; a batch of too few is computed by all."""
        return slice(self.number, None, self.count) if self.parts(utterances) > 1 else slice(None)

    def parts(self, utterances: int) -> int:
        """Into how many a batch is split."""
        return self.count if utterances >= self.count else 1

    def asked(self) -> bool:
        """Whether the user wants an end."""
        return self._asked is not None and self._asked.is_set()

    def wait_for_all(self) -> None:
        """Until all have come here, however long it takes; Ctrl-C is heard."""
        if self.count == 1:
            return
        self._waits += 1
        everyone = f"speechfuse/here/{self._waits}"
        if self.store.add(f"{everyone}/count", 1) == self.count:
            self.store.set(everyone, "yes")
        while not self.store.check([everyone]):
            time.sleep(LOOK)

    def leave(self) -> None:
        """The first process, which may keep what all share, leaves when the others have left."""
        left, until = "speechfuse/left", time.monotonic() + LEAVE
        with suppress(RuntimeError):
            if self.number > 0:
                self.store.add(left, 1)
            while self.number == 0 and self.store.add(left, 0) < self.count - 1:
                if time.monotonic() > until:
                    break
                time.sleep(LOOK)

    @contextmanager
    def first(self, leads: bool) -> Iterator[None]:
        """Those that lead go first; the others when all of them are done."""
        if not leads:
            self.wait_for_all()
        yield
        if leads:
            self.wait_for_all()


def _end(why: str) -> None:
    """The main thread may wait in vain for the other, and cannot be told."""
    logging.getLogger(__name__).error(why)
    os._exit(1)


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
            f"{count} processes on a machine need a GPU each, and this one has {gpus}; use so "
            "many, let each see all of them (srun with --gpus-per-node), or train on the CPU with "
            "CUDA_VISIBLE_DEVICES= before the command"
        )
