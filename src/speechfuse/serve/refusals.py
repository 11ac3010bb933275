"""Why a request has no answer: an HTTP status, what was found, what is expected, what to do."""

from __future__ import annotations

from speechfuse.errors import DataError, SpeechFuseError

FORMATS = "WAV, FLAC, OGG, MP3, AIFF or another format of libsndfile"
NAMES = {
    400: "bad request",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    413: "too large",
    415: "unsupported media type",
    422: "cannot be answered",
    500: "internal error",
    503: "busy",
    504: "timed out",
}


class Refusal(SpeechFuseError):
    """One refused request."""

    def __init__(self, status: int, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{found}; expected {expected}; {remedy}")
        self.status, self.found, self.expected, self.remedy = status, found, expected, remedy

    def to_dict(self) -> dict[str, dict[str, str | int]]:
        """For JSON."""
        return {
            "error": {
                "status": self.status,
                "name": NAMES.get(self.status, "refused"),
                "found": self.found,
                "expected": self.expected,
                "remedy": self.remedy,
            }
        }


def unreadable(error: DataError | str) -> Refusal:
    """Of a recording, from what the library says, which ends in `; what to do`."""
    found, _, remedy = str(error).rpartition("; ")
    if not found:
        found, remedy = remedy, "send another recording"
    return Refusal(422, found, f"a recording as {FORMATS}", remedy)


def unknown(error: SpeechFuseError) -> Refusal:
    """Of a task or prompt that a run does not have."""
    found, _, known = str(error).partition("; ")
    return Refusal(
        422, found, known or "what the run was trained for", "see /healthz for its tasks"
    )
