"""Emilia (He et al. 2024, arXiv:2407.05361): speech from the web in six languages, no emotions.

Emilia/EN/EN-B000000.tar, Emilia-YODAS/EN/EN-B000000.tar   pairs NAME.mp3 and NAME.json
DE/DE_B00000.jsonl, DE/DE_B00000/DE_B00000_S00000/mp3/DE_B00000_S00000_W000000.mp3   before 2024-09

As it lies in amphion/Emilia-Dataset on the Hugging Face hub, which asks for consent to its terms.
The part Emilia may be used for what is not commercial only (CC BY-NC 4.0), Emilia-YODAS is under
CC BY 4.0; the recordings stay their owners'. A .json, or a line of a .jsonl, has id (or _id), text,
duration, speaker, language and dnsmos, some also phone_count; wav is a path before 2024-09.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from speechfuse.data.archives import opened
from speechfuse.data.corpus import read_lines
from speechfuse.data.readers.layout import Row, find
from speechfuse.errors import DataError, did_you_mean

_LANGUAGES = ("de", "en", "fr", "ja", "ko", "zh")
_PARTS = ("Emilia", "Emilia-YODAS")
_LAYOUT = "Emilia/EN/EN-B000000.tar ..., or EN/EN_B00000.jsonl ... with folders of .mp3"
_NAMED = "[A-Z][A-Z][-_]B[0-9]*"  # language and batch


def read(
    source: Path,
    *,
    language: Sequence[str] = (),
    max_hours: float | None = None,
    min_dnsmos: float | None = None,
) -> list[Row]:
    """Without a split and without emotions; every recording's speaker is another one.

    language: only these. max_hours: stop after so many, in the order of the files' names.
    min_dnsmos: least estimated quality, of at most 5; all of Emilia has 3 or more.

    Raises:
        DataError: no such language, a file that is damaged, or nothing that is wanted.
    """
    wanted = [name.lower() for name in language]
    for name in wanted:
        if name not in _LANGUAGES:
            raise DataError(f"Emilia has no language '{name}'; {did_you_mean(name, _LANGUAGES)}")
    rows: list[Row] = []
    left = None if max_hours is None else 3600 * max_hours
    for path, record, audio in _records(source, wanted):
        try:
            row, seconds, quality = _row(record), float(record["duration"]), record["dnsmos"]
            if min_dnsmos is not None and float(quality) < min_dnsmos:
                continue
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: found {str(record)[:80]}, expected text, duration, speaker, language and "
                f"dnsmos ({error}); download it again"
            ) from error
        if wanted and row["language"] not in wanted:
            continue
        if left is not None and seconds > left:
            break
        left = None if left is None else left - seconds
        part = [name for name in path.resolve().parts if name in _PARTS]
        rows.append({**row, "audio": audio, **({"part": part[-1]} if part else {})})
    if not rows:
        raise DataError(
            f"{source} has no utterance that is wanted (language {', '.join(wanted) or 'any'}, "
            f"min_dnsmos {min_dnsmos}, max_hours {max_hours}); ask for more"
        )
    return rows


def _records(source: Path, wanted: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Each file, what it says of an utterance, and where the audio is from the source."""
    lists = sorted(source.glob(f"**/{_NAMED}.jsonl")) if source.is_dir() else []
    for path in lists or find(source, f"**/{_NAMED}.tar*", _LAYOUT):
        if wanted and path.name[:2].lower() not in wanted:
            continue
        near = path.relative_to(source)
        if path.suffix == ".jsonl":
            for line in filter(None, read_lines(path)):
                record = _json(line, path)
                yield path, record, str(near.parent / str(record.get("wav")))
        else:
            for record, member in _in_tar(path):
                yield path, record, f"{near}/{member}"


def _in_tar(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """What the .json members say, each with the name of the audio beside it."""
    records: dict[str, dict[str, Any]] = {}
    audio: dict[str, str] = {}
    with opened(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            key = str(name.with_suffix(""))
            if not member.isfile():
                continue
            if name.suffix == ".json" and (file := archive.extractfile(member)):
                records[key] = _json(file.read(), path)
            else:
                audio[key] = str(name)
    for key, record in records.items():
        if key not in audio:
            raise DataError(f"{path}: {key}.json has no audio beside it; download it again")
        yield {"id": PurePosixPath(key).name, **record}, audio[key]


def _row(record: dict[str, Any]) -> Row:
    row = {
        "id": str(record.get("_id") or record.get("id") or PurePosixPath(record["wav"]).stem),
        "text": str(record["text"]).strip(),
        "speaker": str(record["speaker"]),
        "language": str(record["language"]).lower(),
    }
    more = {name: record.get(name) for name in ("dnsmos", "phone_count")}
    row |= {name: str(value) for name, value in more.items() if value is not None}
    return {name: value for name, value in row.items() if value}


def _json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: a record is no JSON ({error}); download it again") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: found {str(record)[:60]}, expected a record of one utterance")
    return record
