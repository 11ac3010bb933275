"""Say which shards a run reads, so that another one does not delete them to make room.

What is said lies in the store's folder as HOST.PID.NUMBER.use for as long as the run has the store.
As with a claim it counts while that process lives, or shows a sign of life.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from speechfuse.cache.claims import beat, is_held
from speechfuse.cache.shards import HOST, write_text
from speechfuse.errors import DataError

_numbers = count()  # one process may have a store twice


class Use:
    """Holds shards of one store until it is gone, which is when nothing refers to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{HOST}.{os.getpid()}.{next(_numbers)}.use"
        self._names: set[str] = set()

    def add(self, paths: Iterable[Path]) -> None:
        """Hold these too, there already or not; where nothing may be written none is held."""
        names = self._names.union(path.stem for path in paths)
        if names == self._names:
            return
        with suppress(DataError):
            write_text(self._path, json.dumps([HOST, os.getpid(), sorted(names)]))
            if not self._names:
                over = threading.Event()
                threading.Thread(target=beat, args=(self._path, over), daemon=True).start()
                weakref.finalize(self, _end, self._path, os.getpid(), over)
            self._names = names


def _end(path: Path, pid: int, over: threading.Event) -> None:
    over.set()
    if os.getpid() == pid:  # a fork of it ends earlier
        with suppress(OSError):
            path.unlink(missing_ok=True)


def in_use(root: Path) -> set[Path]:
    """The shards of all stores that runs at work hold."""
    found = set()
    for mark in root.glob("*/*.use"):
        if is_held(mark):
            with suppress(OSError, ValueError):  # it has ended
                *_, names = json.loads(mark.read_text())
                found |= {mark.with_name(f"{name}.safetensors") for name in names}
    return found
