"""What a check found and what to do about it; imports nothing heavy, so that it always runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from speechfuse.errors import SpeechFuseError

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    about: str
    status: Status
    found: str
    remedy: str = ""  # what to do; empty if it is well

    def __post_init__(self) -> None:
        assert (self.status == "ok") or self.remedy, f"{self.about}: nothing to do about it"


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]]) -> Iterator[Finding]:
    """All of them, whatever becomes of one: a check that fails is a problem by its name."""
    for about, check in checks:
        try:
            yield from check()
        except (SpeechFuseError, ImportError, OSError, RuntimeError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            yield Finding(about, "problem", said[:300], "mend that, then look again")


def to_json(findings: Iterable[Finding]) -> str:
    """For other programs: a list of mappings."""
    return json.dumps([asdict(one) for one in findings], indent=1)
