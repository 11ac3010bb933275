"""What a teacher has answered: one line for each utterance, in a file that grows while it works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechfuse.errors import RunError


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one utterance: a probability for each class of the teacher, or why there are none."""

    id: str
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


class Answers:
    """answers.jsonl. A line that was cut off by a stop is dropped; whole ones are never changed."""

    def __init__(self, path: Path) -> None:
        """Read what is there already.

        Raises:
            RunError: a whole line that is no answer.
        """
        self._path = path
        self.found: dict[str, Answer] = {}
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                answer = Answer(row["id"], tuple(row.get("p", ())), row.get("problem"))
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{path}, line {number} is no answer ({error}); delete the file, it is made "
                    "again"
                ) from error
            self.found[answer.id] = answer
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, answers: Sequence[Answer]) -> None:
        """Several at once, in one piece, so that a stop can hardly fall between them."""
        lines = []
        for one in answers:
            says = {"problem": one.problem} if one.problem else {"p": list(one.probabilities)}
            lines.append(json.dumps({"id": one.id, **says}, ensure_ascii=False) + "\n")
        with self._path.open("ab", buffering=0) as file:
            file.write("".join(lines).encode())
        self.found.update({one.id: one for one in answers})
