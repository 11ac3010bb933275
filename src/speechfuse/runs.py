"""Which folders hold a run; without torch, so that a wrong one is said at once."""

from __future__ import annotations

import shlex
from pathlib import Path

from speechfuse.errors import RunError

RECIPE = "recipe.yaml"  # makes a folder a run's
_SHOWN = 8  # runs below a folder that is none
_DEPTHS = ("*", "*/*", "*/*/*")  # a sweep has rows, seeds and folds


def check_run(folder: Path) -> Path:
    """The folder, if it is a run's.

    Raises:
        RunError: it is not.
    """
    if (folder / RECIPE).is_file():
        return folder
    below = sorted(str(one.parent) for deep in _DEPTHS for one in folder.glob(f"{deep}/{RECIPE}"))
    more = f" and {len(below) - _SHOWN} more" if len(below) > _SHOWN else ""
    raise RunError(
        f"{folder} is no run folder (no {RECIPE}); "
        + (
            f"name one of the runs below it: {', '.join(below[:_SHOWN])}{more}"
            if below
            else "make one with: speechfuse train RECIPE --out FOLDER"
        )
    )


def training_of(folder: Path) -> str:
    """The command that trains a run to its end, from where it stopped."""
    recipe, out = (shlex.quote(str(path)) for path in (folder / RECIPE, folder))
    return f"speechfuse train {recipe} --out {out}"


def runs_below(folder: Path) -> list[Path]:
    """Every run in or below a folder, sorted.

    Raises:
        RunError: there is none.
    """
    found = sorted(path.parent for path in folder.rglob(RECIPE))
    if not found:
        raise RunError(
            f"{folder} is no run folder and has none below it (no {RECIPE}); name folders that "
            "train or sweep has written"
        )
    return found
