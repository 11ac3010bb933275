"""What comes of a teacher's answers: a manifest, the teacher's card, and a count of everything."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechfuse.checkpoint import write_text
from speechfuse.data.corpus import Corpus
from speechfuse.data.manifests import COLUMNS
from speechfuse.data.origins import seen_in
from speechfuse.data.teachers import CONFIDENCE, GIVEN, ORIGIN, Card, write_cards
from speechfuse.pseudo.selection import OVER, UNSURE, Verdict
from speechfuse.types import Utterance

Judged = Sequence[tuple[Utterance, Verdict]]


def write_manifest(folder: Path, corpus: Corpus, label: str, card: Card, judged: Judged) -> None:
    """The utterances that have a label now; the manifest last, for it says that all is there."""
    rows = [_row(u, label, one, card.name) for u, one in judged if one.why_not is None]
    origins = {text for row in rows for key, text in row.items() if key.endswith(ORIGIN)}
    others = [one for one in corpus.teachers if one.name in origins - {card.name}]
    write_cards(folder, [card, *others])
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(folder / "manifest.jsonl", "".join(lines))


def _row(u: Utterance, label: str, verdict: Verdict, origin: str) -> dict[str, Any]:
    """All that is known of the utterance, its label, and where the label is from."""
    row: dict[str, Any] = {column: getattr(u, column) for column in COLUMNS}
    row |= {"audio": str(u.audio.resolve()), **u.extra}
    given = _given(u, label)
    row |= {f"{label}{GIVEN}": given} if given else {}
    row |= {label: verdict.label, f"{label}{ORIGIN}": origin}
    row[f"{label}{CONFIDENCE}"] = verdict.confidence
    return {column: value for column, value in row.items() if value is not None}


def _given(u: Utterance, label: str) -> str | None:
    """The label that it had, unless a teacher gave it."""
    return None if u.extra.get(f"{label}{ORIGIN}") else u.label(label)


def summary_of(
    corpus: Corpus,
    label: str,
    card: Card,
    wanted: Sequence[str],
    judged: Judged,
) -> dict[str, Any]:
    """How many of each class, and why the others are none."""
    classes = {}
    for name in wanted:
        whys = Counter(v.why_not for _, v in judged if v.label == name)
        hours = sum(u.duration or 0 for u, v in judged if v.label == name and v.why_not is None)
        classes[name] = {
            "named": whys.total(),
            UNSURE: whys[UNSURE],
            OVER: whys[OVER],
            "kept": whys[None],
            "hours": round(hours / 3600, 4),
        }
    dropped = Counter(
        v.why_not.partition(":")[0] for _, v in judged if v.why_not not in (None, UNSURE, OVER)
    )
    splits = Counter(u.split or "none" for u, v in judged if v.why_not is None)
    known = [one.speakers_of(seen_in(corpus, [u for u, _ in judged])) for one in card.seen]
    given = [(v.label, old) for u, v in judged if not v.why_not and (old := _given(u, label))]
    return {
        "corpus": corpus.name,
        "teacher": card.teacher,
        "origin": card.name,
        "threshold": card.threshold,
        "seen by the teacher": [one.corpus for one in card.seen],
        "speakers that it was trained on": len(set().union(*known)),
        "utterances": len(judged),
        "kept": sum(v.why_not is None for _, v in judged),
        "kept by split": dict(sorted(splits.items())),
        "classes": classes,
        "dropped": dict(sorted(dropped.items())),
        "had a label": len(given),
        "of these the same": sum(one == other for one, other in given),
    }
