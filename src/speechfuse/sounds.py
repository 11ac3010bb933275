"""Which audio files somebody means; without torch, so that a wrong path is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from speechfuse.errors import DataError

SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}


def sounds_in(folder: Path) -> list[Path]:
    """Files at any depth that have the name of a sound format, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)


def find_audio(
    given: Sequence[str | Path], wrong: dict[str, str] | None = None
) -> dict[Path, Path]:
    """Files by name, in folders (those with the name of a sound format), and of patterns.

    Each with its place: its path below the folder or pattern that was given, or its name.
    wrong: gets what holds no audio and why, as long as something else does.

    Raises:
        DataError: there is none, or a folder or pattern holds none and `wrong` is not given.
    """
    found: dict[Path, Path] = {}
    empty: dict[str, str] = {}
    for one in given:
        path, base = Path(one), Path(one).parent
        if path.is_dir():
            inside, base = sounds_in(path), path
        elif not path.exists() and _is_pattern(str(one)):
            inside = sorted(Path(name) for name in glob(str(one), recursive=True))  # noqa: PTH207
            parts = path.parts[:-1]
            fixed = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
            base = Path(*parts[:fixed])
        elif path.exists():
            inside = [path]
        else:
            empty[str(one)] = f"no audio file at {one}, found nothing; check the path"
            continue
        if not inside:
            formats = ", ".join(sorted(SOUNDS))
            empty[str(one)] = f"{one} holds no audio ({formats}); check the path"
        for file in inside:
            found.setdefault(file, file.relative_to(base))
    if empty and (wrong is None or not found):
        raise DataError("\n".join(empty.values()))
    if wrong is not None:
        wrong.update(empty)
    return found


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")
