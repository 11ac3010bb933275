"""Memory that batches are laid out in, used again once nothing refers to what lay there."""

from __future__ import annotations

import math
import threading
import weakref

import torch
from torch import Tensor

SMALL = 1 << 18  # numbers; the system's own allocator keeps smaller blocks


class Pool:
    """Float32 tensors in memory that is kept.

    A large block that is freed goes back to the system, which maps its pages anew and zeroes them
    when they are next written: for a batch of layers that is eight times the work of filling it.
    """

    def __init__(self, keep: int = 4) -> None:
        """keep: how many blocks that nothing lies in are kept at most."""
        self._free: list[Tensor] = []
        self._keep = keep
        self._lock = threading.RLock()  # a block may come back while another one is looked for

    def empty(self, *shape: int) -> Tensor:
        """Contiguous, its values undefined."""
        size = math.prod(shape)
        if size < SMALL:
            return torch.empty(shape)
        # Whoever uses the tensor holds its memory through this array, which tells when it ends.
        block = self._take(size)
        array = block.numpy()[:size]
        weakref.finalize(array, self._give_back, block).atexit = False
        return torch.from_numpy(array).view(shape)

    def _take(self, size: int) -> Tensor:
        """The smallest block that is free and fits, or a new one in place of a smaller one."""
        with self._lock:
            self._free.sort(key=len)
            for index, block in enumerate(self._free):
                if len(block) >= size:
                    return self._free.pop(index)
            del self._free[:1]
        return torch.empty(size)

    def _give_back(self, block: Tensor) -> None:
        with self._lock:
            self._free.append(block)
            self._free.sort(key=len)
            del self._free[: -self._keep]


BATCHES = Pool()  # of this process
