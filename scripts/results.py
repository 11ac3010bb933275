"""Run the commands of a page's tables again, and put what they print now in their place.

    python -m scripts.results docs/performance.md [--only "bench cache"]

A table stands in the page between the command that makes it and an end:

    <!-- table: speechfuse bench cache --repeats 7 --seconds 120 --processor -->
    ...
    <!-- end -->

Everything else, what is said about the numbers too, stays as it is: read it again afterwards.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TABLE = re.compile(r"^(?:[^|\n]+\n\n)?(?:\|[^\n]*\n)+", re.M)  # with its title
PLACE = re.compile(r"(<!-- table: speechfuse (?P<command>[^\n]+?) -->\n).*?(?=<!-- end -->)", re.S)


def tables_of(command: Sequence[str]) -> str:
    """The tables that a command of speechfuse prints, as Markdown.

    Raises:
        CalledProcessError: it failed; it has said why.
    """
    main = "from speechfuse.cli import main; main()"
    call = [sys.executable, "-c", main, "--markdown", *command]
    printed = subprocess.run(call, stdout=subprocess.PIPE, check=True, text=True).stdout
    return "\n".join(TABLE.findall(f"{printed}\n"))


def renewed(
    page: str, only: str = "", make: Callable[[Sequence[str]], str] = tables_of
) -> tuple[str, int]:
    """A page with its tables made again, and how many they are. only: of commands that have it."""
    count = 0

    def replace(place: re.Match[str]) -> str:
        nonlocal count
        if only not in place["command"]:
            return place[0]
        count += 1
        return f"{place[1]}{make(shlex.split(place['command']))}"

    return PLACE.sub(replace, page), count


def main() -> int:
    """Write the pages again; 2 if none of them has such a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="a part of the command")
    given = parser.parse_args()
    total = 0
    for path in given.pages:
        text, count = renewed(path.read_text("utf-8"), given.only)
        path.write_text(text, "utf-8")
        print(f"{path}: {count} tables")
        total += count
    return 0 if total else 2


if __name__ == "__main__":
    sys.exit(main())
