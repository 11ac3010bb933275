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
from speechfuse.errors import DataError

HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 120.0  # seconds without one, after which a claim of another machine counts for nothing
UNWRITTEN = 5.0  # seconds after which one that says nothing does: its writer was killed


@contextmanager
def claimed(shard: Path) -> Iterator[bool]:
    """Whether this process has the shard while the block runs; False if another one has it.

    Raises:
        DataError: nothing can be written there.
    """
    path = shard.with_suffix(".claim")
    if not _take(path):
        yield False
        return
    over = threading.Event()
    beating = threading.Thread(target=beat, args=(path, over), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        over.set()
        beating.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sweep_claims(folder: Path) -> None:
    """Delete claims, and what runs said of what they use, whose process is no more."""
    for path in [*folder.glob("*.claim"), *folder.glob("*.use")]:
        if not is_held(path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _take(path: Path) -> bool:
    """Only a claim that counts for nothing is deleted, so that no fresh one is."""
    for _ in range(2):
        try:
            _write(path)
        except FileExistsError:
            if is_held(path):
                return False
            with suppress(OSError):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot write {path} ({error}); make room or choose another folder, and run it "
                "again"
            ) from error
        else:
            return True
    return False


def _write(path: Path) -> None:
    """None is left where the disk is full."""
    file = path.open("x")
    try:
        with file:
            file.write(json.dumps([HOST, os.getpid()]))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def is_held(path: Path) -> bool:
    """Whether whoever took it lives: on this machine there is the process, elsewhere it beats."""
    age = 0.0
    try:
        age = time.time() - path.stat().st_mtime
        host, pid, *_ = json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except OSError:
        return age < STALE
    except (ValueError, TypeError):
        return age < UNWRITTEN  # being written, or broken off
    if host == HOST and not is_running(int(pid)):
        return False
    return age < STALE


def beat(path: Path, over: threading.Event) -> None:
    """Show signs of life until it is over."""
    while not over.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)
