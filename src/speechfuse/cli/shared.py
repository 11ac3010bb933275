"""The application: groups of commands, options that several of them share, exit codes."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from speechfuse import __version__
from speechfuse.cli.terminal import tables_as_markdown
from speechfuse.errors import SpeechFuseError
from speechfuse.runs import check_run

BEGIN, DATA, BEFORE = "Begin here", "Data", "Before training"
RUNS, OTHERS, SPEED = "Runs", "For others", "Speed"


class _Commands(TyperGroup):
    """In groups, with whole first sentences; a wrong choice names the nearest."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for panel in (BEGIN, DATA, BEFORE, RUNS, OTHERS, SPEED):
            groups[panel] = []
        for name, command in self.commands.items():
            assert isinstance(command, TyperCommand)
            about = (command.help or "").partition("\n\n")[0]
            groups[str(command.rich_help_panel)].append((name, " ".join(about.split())))
        for panel, rows in groups.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # of a library
            if " is not one of " in error.message:
                wrong, *known = re.findall("'([^']*)'", error.message)
                if near := difflib.get_close_matches(wrong, known, n=1):
                    error.message += f" Did you mean '{near[0]}'?"
            raise


# Everything heavy is imported inside the commands: --help answers before torch is loaded.
app = typer.Typer(
    cls=_Commands,
    help="Fuse the layers of several speech foundation models and train small heads on the "
    "result. New here? Run: speechfuse quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"speechfuse {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print tables as Markdown, to be pasted.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print it, and end."),
    ] = False,
) -> None:
    """What stands before the command's name."""
    tables_as_markdown(markdown)


Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, like training.steps=100.")
]
RecipePath = Annotated[Path, typer.Argument(help="A recipe, a YAML file.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if found.")]
Jobs = Annotated[int, typer.Option(min=0, help="Runs at a time; 0: a core each, at most 4.")]
Yes = Annotated[bool, typer.Option(help="Extract layers also past the limits of extract.")]
LIMIT_GB, LIMIT_HOURS = 10.0, 1.0  # of an extraction that is begun without --yes


def run_there(run: Path | None) -> Path | None:
    """Checked before the command begins, which loads torch."""
    return None if run is None else check_run(run)


RunFolder = Annotated[Path, typer.Argument(callback=run_there, help="A run folder made by train.")]


def _trust(context: typer.Context, trust: bool) -> None:
    """For as long as the command runs."""
    if trust:
        from speechfuse.catalog import trusted_code

        context.with_resource(trusted_code())


TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=_trust,
        help="Import parts that the run names as module:Class: whoever wrote them can do anything.",
    ),
]


def main() -> None:
    """Run a command; the user's errors become one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except SpeechFuseError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no room, no permission: the system's own words are the clearest
        print(f"error: {error}; check path, permission and free room", file=sys.stderr)
        sys.exit(2)
