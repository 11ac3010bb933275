"""Say which shard one is at work on, so that another process takes another one.

Claims only spare work. Nothing is wrong when two processes make the same shard after all: both
write the same bytes, and each is renamed into place whole.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speechfuse.cache.shards import HOST, is_running

HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 120.0  # seconds without one, after which a claim of another machine counts for nothing


@contextmanager
def claimed(shard: Path) -> Iterator[bool]:
    """Whether this process has the shard while the block runs; False if another one has it."""
    path = shard.with_suffix(".claim")
    if not _take(path):
        yield False
        return
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, over), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        over.set()
        beating.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sweep_claims(folder: Path) -> None:
    """Delete claims whose process is no more."""
    for path in folder.glob("*.claim"):
        if not _is_held(path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _take(path: Path) -> bool:
    """Only a claim that counts for nothing is deleted, so that no fresh one is."""
    for _ in range(2):
        try:
            with path.open("x") as file:
                file.write(json.dumps([HOST, os.getpid()]))
        except FileExistsError:
            if _is_held(path):
                return False
            with suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            return True
    return False


def _is_held(path: Path) -> bool:
    """Whether whoever took it lives: on this machine there is the process, elsewhere it beats."""
    age = 0.0
    try:
        age = time.time() - path.stat().st_mtime
        host, pid = json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError):
        return age < STALE  # being written, or broken off
    if host == HOST and not is_running(int(pid)):
        return False
    return age < STALE


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)
