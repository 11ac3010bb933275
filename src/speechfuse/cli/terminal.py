"""What a person sees: tables, findings, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import typer

from speechfuse.bars import shown_bars

_markdown = False


def tables_as_markdown(on: bool) -> None:
    """How tables are printed from now on."""
    global _markdown
    _markdown = on


def print_table(
    title: str, columns: list[str], rows: list[list[str]], *, left: bool = False
) -> None:
    """As wide as the terminal, 150 columns elsewhere; numbers on the right."""
    if _markdown:
        typer.echo(f"{markdown_table(title, columns, rows)}\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        justify: Any = "left" if left or index == 0 else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def markdown_table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """To be pasted, its title above it."""
    cells = [columns, ["---"] * len(columns), *rows]
    lines = ["| " + " | ".join(map(_in_a_cell, row)) + " |" for row in cells]
    return "\n".join([*([f"{_in_a_cell(title)}\n"] if title else []), *lines])


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def print_finding(status: str, about: str, found: str, remedy: str) -> None:
    """One line or some, as soon as it is known; checks take seconds."""
    from rich.console import Console
    from rich.table import Table

    line = Table.grid(padding=(0, 2))
    line.add_column(
        width=7, style={"problem": "bold red", "warning": "yellow"}.get(status, "green")
    )
    line.add_column(width=18, overflow="fold")
    line.add_column(overflow="fold")
    line.add_row(status, about, found)
    if remedy:
        line.add_row("", "", f"-> {remedy}")
    Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False).print(line)


@contextmanager
def shown_progress(first: bool = True) -> Iterator[Callable[[str, int, int], None] | None]:
    """Bars on a terminal; elsewhere a line when something begins and when it is done.

    first: of several processes, the others say nothing.
    """
    try:
        with shown_bars() if first else nullcontext() as show:
            yield show
    except KeyboardInterrupt:
        if first:
            print("\nstopped, what is done is kept; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
