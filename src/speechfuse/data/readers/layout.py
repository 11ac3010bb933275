"""What every reader needs: rows of a manifest, files that must be there, labels in file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from speechfuse.data.corpus import read_lines
from speechfuse.errors import DataError

Row = dict[str, str]  # a manifest's columns; audio is relative to the corpus's folder


@dataclass(frozen=True)
class Reader:
    """Lists a corpus as its owner ships it, and names the trials that come with it."""

    name: str
    read: Callable[..., list[Row]]  # of the corpus's folder, and its filters by name
    trials: str | None = None  # a file in the corpus's folder
    filters: tuple[str, ...] = ()  # what can be left out while it is read


def find(source: Path, pattern: str, layout: str) -> list[Path]:
    """Files of the corpus by glob pattern, sorted, without hidden ones; at least one.

    layout: what the owner ships, for the reader of an error.

    Raises:
        DataError: nothing fits, with what is there instead.
    """
    if not source.is_dir():
        raise DataError(f"no folder at {source}; name the one that holds {layout}")
    if found := sorted(p for p in source.glob(pattern) if not p.name.startswith(".")):
        return found
    here = sorted(path.name for path in source.iterdir())
    more = f", and {len(here) - 8} more" if len(here) > 8 else ""
    inner = next(source.glob(f"*/{pattern}"), None)
    remedy = "name the folder that holds these"
    if inner:
        remedy += f", perhaps {source / inner.relative_to(source).parts[0]}"
    raise DataError(
        f"{source} has no {pattern}; found {', '.join(here[:8]) or 'nothing'}{more}; "
        f"expected {layout}; {remedy}"
    )


def split_lines(path: Path, fields: int, expected: str) -> list[list[str]]:
    """Lines of fields with blanks between them; the last field may hold blanks itself.

    Raises:
        DataError: unreadable, or a line with fewer fields.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        row = line.strip().split(maxsplit=fields - 1)
        if not row:
            continue
        if len(row) < fields:
            raise DataError(f"{path}, line {number}: found '{line}', expected {expected}")
        rows.append(row)
    return rows


def labels_in_names(
    source: Path,
    files: Iterable[Path],
    name: str,
    codes: Mapping[str, Mapping[str, str]],
) -> list[Row]:
    """A row for each file, labelled by the parts of its name.

    name: a regular expression of the name without suffix; its groups are columns.
    codes: of a column, what its codes stand for.

    Raises:
        DataError: another name, or an unknown code.
    """
    rows = []
    for path in files:
        match = re.fullmatch(name, path.stem)
        if not match:
            shown = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", name)
            raise DataError(f"{path}: expected the name {shown}; move it out of the corpus")
        row = {"audio": str(path.relative_to(source)), **match.groupdict()}
        for column, words in codes.items():
            if row[column] not in words:
                raise DataError(
                    f"{path}: found {column} '{row[column]}' in the name, expected one of "
                    f"{', '.join(words)}; move it out of the corpus"
                )
            row[column] = words[row[column]]
        rows.append(row)
    return rows
