"""Progress for people: bars on a terminal, a line at the beginning and at the end elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def on_screen() -> bool:
    """Whether somebody sees what is written beside the results."""
    return sys.stderr.isatty()


@contextmanager
def shown_bars() -> Iterator[Callable[[str, int, int], None]]:
    """What to tell of (what, done, total): a bar for each of what goes on, or two lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not on_screen():
        begun: set[str] = set()

        def say(what: str, done: int, total: int) -> None:
            if what not in begun:
                begun.add(what)
                print(f"{what} ...", file=sys.stderr, flush=True)
            if done == total:
                begun.discard(what)
                print(f"{what}: {total}", file=sys.stderr, flush=True)

        yield say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    screen = Console(stderr=True)  # lines above the bars only where both are on it
    with Progress(*columns, console=screen, redirect_stdout=sys.stdout.isatty()) as bars:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done, total=total)
            if done == total:
                known.pop(what)

        yield show
