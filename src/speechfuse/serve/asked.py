"""What may be asked beside a recording, in fields of a form or in the query."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from speechfuse.errors import did_you_mean
from speechfuse.serve.refusals import Refusal

PROMPT = 500  # characters
FIELDS: dict[str, Any] = {
    "audio": {"type": "string", "format": "binary", "contentMediaType": "audio/*"},
    "tasks": {"type": "array", "items": {"type": "string"}},
    "layers": {"type": "boolean"},
    "prompt": {"type": "string", "maxLength": PROMPT},
}
QUERY = [name for name in FIELDS if name != "audio"]
_BOOLEAN = TypeAdapter(bool)  # read as a query's are
_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["audio"],
                    "properties": FIELDS,
                    "additionalProperties": False,
                }
            },
            "audio/*": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


def check_names(what: str, names: Iterable[str], known: Iterable[str], remedy: str) -> None:
    """Raises Refusal (422) with the name that is nearest."""
    known = [*known]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known).rstrip(".")
            raise Refusal(422, f"unknown {what} '{name[:60]}'", hint, remedy)


def switch(given: str) -> bool:
    """Raises Refusal (422)."""
    try:
        return _BOOLEAN.validate_python(given)
    except ValidationError as error:
        raise Refusal(
            422, f"layers '{given[:60]}'", "true or false", "leave it out for false"
        ) from error


def words(given: str) -> str:
    """A prompt. Raises Refusal (422) if it is too long."""
    if len(given) > PROMPT:
        raise Refusal(
            422, f"a prompt of {len(given)} characters", f"at most {PROMPT}", "say it in fewer"
        )
    return given
