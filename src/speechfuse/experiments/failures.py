"""A known way in which a run or a sweep goes wrong."""

from __future__ import annotations

from typing import NamedTuple


class Failure(NamedTuple):
    """One that was found: of which kind, and a line with its number and the first remedy."""

    kind: str
    line: str

    def of(self, name: str) -> Failure:
        """The same, said of what is named."""
        return self._replace(line=f"{name}: {self.line}")
