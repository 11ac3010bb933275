"""A folder of pseudo-labels: whose they are, so that no other teacher or corpus writes into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechfuse.checkpoint import write_text
from speechfuse.data.corpus import Corpus
from speechfuse.errors import RunError
from speechfuse.pseudo.teacher import Teacher
from speechfuse.types import Utterance

_CLAIM = "labelling.json"


def claim_of(corpus: Corpus, utterances: Sequence[Utterance], teacher: Teacher) -> dict[str, Any]:
    """What decides the answers in a folder."""
    rows = [[u.id, u.start, u.duration, u.audio.stat().st_size] for u in utterances]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {
        "corpus": f"{corpus.name}, {len(utterances)} utterances, {digest[:16]}",
        "teacher": {"name": teacher.name, **teacher.identity()},
        "classes": teacher.classes,
    }


def check_claim(folder: Path, claim: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else.

    Raises:
        RunError: labels of another teacher or corpus, or other files.
    """
    remedy = "choose another folder with --out, or delete this one"
    path = folder / _CLAIM
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, expected a folder to write; {remedy}")
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise RunError(f"{folder} is not empty and holds no pseudo-labels; {remedy}")
        return
    theirs = json.loads(path.read_text())
    for what in ("teacher", "corpus", "classes"):
        if theirs.get(what) != claim[what]:
            old, new = (one.get(what) for one in (theirs, claim))
            names = [one["name"] if isinstance(one, dict) else one for one in (old, new)]
            raise RunError(
                f"{folder} holds labels of another {what} ({names[0]}, now {names[1]}); {remedy}"
            )


def write_claim(folder: Path, claim: Mapping[str, Any]) -> None:
    """Make the folder its own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _CLAIM, json.dumps(claim, indent=2) + "\n")
