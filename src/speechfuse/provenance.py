"""What made a file of answers, and of which audio, so that nothing stale is gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechfuse.cache.memo import file_sha256
from speechfuse.checkpoint import Run, write_text
from speechfuse.errors import DataError

_RUN = ("recipe.yaml", "tasks.json", "upstreams.json", "model.safetensors")


class Provenance:
    """A hidden file beside the answers: what was asked of which run, then a line for each answer.

    Audio is known by its size and time of change: reading all of it again would take as long as
    hearing a good part of it. What was asked has to be the same, changed audio is answered anew.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], audio: Iterable[Path]) -> None:
        """path: of the hidden file. about: what was asked. audio: as it is now."""
        self.path, self._about = path, json.loads(json.dumps(about))
        self._now = {str(file): _stamp(file) for file in audio}
        self._known: dict[str, list[Any]] = {}

    def resume(self, out: Path, *, holds: bool) -> None:
        """Go on with answers, or begin if there are none (holds).

        Raises:
            DataError: it is not known what made them, or something else was asked.
        """
        if holds:
            about, *lines = self._read()
            if not isinstance(about, dict):
                raise DataError(
                    f"{out} holds something and nothing says what made it (no {self.path}); "
                    "choose another --out, or delete it"
                )
            if other := [k for k in self._about if about.get(k) != self._about[k]]:
                raise DataError(
                    f"{out} holds answers to something else (differs in {', '.join(other)}); "
                    "choose another --out, or delete it"
                )
            self._known = {key: stamp for key, *stamp in lines}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = [self._about, *([key, *stamp] for key, stamp in self._known.items())]
        write_text(self.path, "".join(f"{json.dumps(entry)}\n" for entry in entries))

    def heard(self, key: str) -> str | None:
        """The audio that an answer is of; None if it is not known."""
        return str(self._known[key][0]) if key in self._known else None

    def current(self, key: str) -> bool:
        """Whether the audio of an answer is as it was, if it is asked for now."""
        if key not in self._known:
            return False
        name, *stamp = self._known[key]
        return bool(self._now.get(name, stamp) == stamp)

    def note(self, key: str, name: str) -> None:
        """An answer of this audio is there."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, name, *self._now[name]]) + "\n")

    def _read(self) -> list[Any]:
        """What was asked, and the answers; a line that was broken off is left out."""
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else [""]
        found = []
        for line in lines[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        answers = [one for one in found[1:] if isinstance(one, list) and len(one) == 4]
        return [found[0] if found else None, *answers]


def run_hash(folder: Path) -> str:
    """Of what decides a run's answers: its recipe, weights, encoders and thresholds."""
    files = [folder / name for name in _RUN]
    parts = [file_sha256(path) for path in files if path.is_file()]
    return hashlib.sha256(repr((parts, Run(folder).decisions())).encode()).hexdigest()[:16]


def _stamp(file: Path) -> list[int]:
    """Size and time of change; zeros if it is gone."""
    try:
        about = file.stat()
    except OSError:
        return [0, 0]
    return [about.st_size, about.st_mtime_ns]
