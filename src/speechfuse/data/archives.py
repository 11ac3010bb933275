"""Audio that lies in tar files: a manifest names it like EN/EN-B000000.tar/clip.mp3."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from speechfuse.errors import DataError
from speechfuse.types import Progress


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar file, compressed or not, read from the beginning to the end.

    Raises:
        DataError: it is none, or breaks off.
    """
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no whole tar file ({error}); download it again") from error


def member_of(base: Path, audio: str) -> tuple[Path, str] | None:
    """The tar file and the member that a manifest's path names; None if it leads to no tar file."""
    if ".tar" not in audio:
        return None
    parts = Path(audio).parts
    for end in range(1, len(parts)):
        path = base.joinpath(*parts[:end])
        if ".tar" in path.name and path.is_file():
            return path, "/".join(parts[end:])
    return None


def unpack(
    rows: Sequence[Mapping[str, str]], base: Path, out: Path, progress: Progress | None = None
) -> list[dict[str, str]]:
    """The rows with audio of their own: what lies in a tar file is written below `out`.

    Raises:
        DataError: a tar file that breaks off or lacks a member, or a member that would be written
            elsewhere.
    """
    wanted: dict[Path, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, row in enumerate(rows):
        if found := member_of(base, row.get("audio", "")):
            wanted[found[0]][found[1]].append(index)
    result = [dict(row) for row in rows]
    taken: dict[Path, Path] = {}
    done, total = 0, sum(len(members) for members in wanted.values())
    for path, members in wanted.items():
        folder = _place(path, base, out, taken)
        left = set(members)
        with opened(path) as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if name not in left:
                    continue
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise DataError(f"{path}: member '{name}' leads out of it; pack it anew")
                left.remove(name)
                source = archive.extractfile(member) if member.isfile() else None
                if source is None:
                    raise DataError(f"{path}: member '{name}' is no file; pack it anew")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                for index in members[name]:
                    result[index]["audio"] = str(target)
                done += 1
                if progress:
                    progress("audio files unpacked", done, total)
        if left:
            raise DataError(
                f"{path} has no member '{min(left)}' ({len(left)} lack in all); mend the manifest, "
                "or download it again"
            )
    return result


def _place(path: Path, base: Path, out: Path, taken: dict[Path, Path]) -> Path:
    """A folder for the members of one tar file, another one for each."""
    near = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
    if ".." in near.parts:
        near = Path(path.name)
    stem = near.name[: near.name.index(".tar")]
    place, number = out / near.with_name(stem), 1
    while taken.setdefault(place, path) != path:
        number += 1
        place = out / near.with_name(f"{stem}-{number}")
    return place
