"""What processes do that are begun for a test: without Lightning, which takes seconds to import."""

from __future__ import annotations

import inspect
import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from speechfuse.errors import DataError
from speechfuse.group import joined
from speechfuse.heads.standardize import Standardize
from speechfuse.ranks import Rank
from speechfuse.types import Progress


def stepping(progress: Progress, rank: Rank) -> None:
    """Steps without end; each waits for the others."""
    with joined(rank):
        for step in itertools.count(1):
            distributed.all_reduce(torch.ones(1))
            if rank.number == 0:
                progress("training steps", step, 0)
            signal.sigtimedwait([], 0.01)


def failing(error: Exception, progress: Progress, rank: Rank) -> None:
    """The last process fails, the others wait for it."""
    with joined(rank):
        if rank.number == rank.count - 1:
            raise error
        distributed.barrier()


def failing_hard(folder: Path, progress: Progress, rank: Rank) -> None:
    """As `failing`, and the end of the last process comes by a signal."""
    frame: Any = inspect.currentframe()
    tell = frame.f_back.f_locals["tell"]
    try:
        failing(DataError("a clip of the second"), progress, rank)
    except DataError as error:
        names = [thread.name for thread in threading.enumerate() if "_look" in thread.name]
        (folder / "threads").write_text(" ".join(names))
        tell(error)
        os.abort()


def sleeping(progress: Progress, rank: Rank) -> None:
    """It has not begun to train, and ends for no signal but the last."""
    while True:
        progress("naps", 1, 1)
        signal.sigtimedwait([], 0.2)


def standardise(rows: Tensor, folder: Path, progress: Progress, rank: Rank) -> None:
    """Each its part of the rows."""
    norm = Standardize(rows.shape[1]).double()
    norm.parts = rank.count
    with joined(rank):
        found = standardised(norm, rows, rank.part(len(rows)))
    torch.save((*found, dict(norm.state_dict())), folder / f"{rank.number}.pt")


def standardised(norm: Standardize, rows: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Some rows, and the gradient of something that depends on all of them."""
    own = rows[part].clone().requires_grad_()
    wanted = torch.arange(rows.numel(), dtype=torch.float64).reshape(rows.shape)[part]
    found = norm(own)
    (found**2 * wanted).sum().backward()
    assert own.grad is not None
    return found.detach(), own.grad
