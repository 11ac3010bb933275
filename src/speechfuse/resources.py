"""Files that ship with the library: recipes and the two small encoders."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(kind: str, name: str) -> Path | None:
    """A shipped file or folder, inside the installed package or beside it in a checkout.

    kind: recipes or models. None if there is no such thing.
    """
    for root in (_PACKAGE, _PACKAGE.parents[1]):
        path = root / kind / name
        if path.exists():
            return path
    return None
