"""Remember what was computed from a file for as long as the file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

Stat = tuple[int, ...]


class Memo:
    """A value for each file, kept in a file of its own: one line each, the last one counts.

    A line holds for the size, times and inode that its file had. Several processes append to it
    without a lock: a line is one write, and one that is torn is no JSON and counts for nothing.
    """

    def __init__(self, path: Path, *, changes: bool = True) -> None:
        """changes: whether a change of what the file system says of the file (ctime) counts."""
        self._path, self._changes = path, changes
        self._known: dict[str, tuple[Stat, str]] = {}
        self._new: list[str] = []
        with suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                with suppress(ValueError, TypeError):
                    name, stat, value = json.loads(line)
                    self._known[name] = (tuple(stat), value)

    def get(self, path: Path) -> str | None:
        """What was put for this file as it is now."""
        stat, value = self._known.get(str(path), ((), None))
        return value if stat == self._stat(path) else None

    def put(self, path: Path, value: str) -> None:
        self._put(path, self._stat(path), value)

    def ask(self, path: Path, compute: Callable[[Path], str]) -> str:
        """What is known of the file, or what `compute` finds, if it did not change meanwhile."""
        before = self._stat(path)
        stat, value = self._known.get(str(path), ((), ""))
        if stat == before:
            return value
        value = compute(path)
        if self._stat(path) == before:
            self._put(path, before, value)
        return value

    def _put(self, path: Path, stat: Stat, value: str) -> None:
        self._known[str(path)] = (stat, value)
        self._new.append(json.dumps([str(path), stat, value]) + "\n")

    def save(self) -> None:
        """Append what is new; where nothing may be written it is found again next time."""
        if not self._new:
            return
        text, self._new = "".join(self._new), []
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(text)

    def _stat(self, path: Path) -> Stat:
        stat = path.stat()
        found = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        return (*found, stat.st_ctime_ns) if self._changes else found


@lru_cache(maxsize=8)
def audio_hashes(root: Path) -> Memo:
    """The hashes of audio files known in a folder of stores, one for the whole process."""
    return Memo(root / "audio.jsonl")


def file_sha256(path: Path) -> str:
    """Of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def absolute(path: Path) -> Path:
    """Without following links, which costs a call for each part of the path."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (pathlib's own does not drop `..`)
