"""What probes have found, kept in a file, so that the same selection again takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from speechfuse.experiments.probing.properties import VALUES
from speechfuse.metrics import Evidence, SpeakerSums, SpeakerTrials


class Kept:
    """OUT/probes.jsonl: a value for each digest of all that it depends on, one a line."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "probes.jsonl"
        self._known: dict[str, Any] = {}
        text = self._path.read_text() if self._path.is_file() else ""
        for line in text.splitlines():
            with suppress(ValueError, KeyError):  # the last one may be cut off
                read = json.loads(line)
                self._known[read["of"]] = read["value"]
        if text and not text.endswith("\n"):
            self._write("\n")

    def ask(self, about: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """What is known, or what `compute` finds; it has to be JSON."""
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        if digest not in self._known:
            self._known[digest] = compute()
            self._write(json.dumps({"of": digest, "value": self._known[digest]}) + "\n")
        return self._known[digest]

    def evidence(self, about: Sequence[Any], compute: Callable[[], Evidence]) -> Evidence:
        """The same of a probe's evidence."""
        return _evidence(self.ask(about, lambda: _data(compute())))

    def _write(self, text: str) -> None:
        with self._path.open("a") as file:
            file.write(text)


def _data(evidence: Evidence) -> dict[str, Any]:
    if isinstance(evidence, SpeakerSums):
        metric = next(name for name, value in VALUES.items() if value is evidence.value)
        return {
            "metric": metric,
            "speakers": list(evidence.speakers),
            "rows": evidence.rows.tolist(),
        }
    return {
        "speakers": list(evidence.speakers),
        "enrolment": evidence.enrolment.tolist(),
        "test": evidence.test.tolist(),
        "same": evidence.same.tolist(),
        "scores": evidence.scores.round(6).tolist(),
    }


def _evidence(data: dict[str, Any]) -> Evidence:
    if "rows" in data:
        return SpeakerSums(data["speakers"], np.array(data["rows"]), VALUES[data["metric"]])
    return SpeakerTrials(
        data["speakers"],
        np.array(data["enrolment"]),
        np.array(data["test"]),
        np.array(data["same"]),
        np.array(data["scores"]),
    )
