"""Pages whose tables a command makes again."""

import re
import shlex

import pytest
from scripts.results import PLACE, renewed, tables_of

from snippets import ROOT, parse

PAGE = """# A page

<!-- table: speechfuse parts interface -->
old
<!-- end -->

Said about it.

<!-- table: speechfuse bench fusion --frames 4 -->
older
<!-- end -->
"""


def test_only_what_is_named_is_made_again_and_all_else_stays():
    asked = []
    made, count = renewed(PAGE, "parts", lambda command: asked.append(command) or "| new |\n")
    assert (asked, count) == ([["parts", "interface"]], 1)
    assert made == PAGE.replace("old\n", "| new |\n", 1)
    assert renewed(made, "parts", lambda _: "| new |\n") == (made, 1)
    assert renewed(PAGE, "no such") == (PAGE, 0)
    both, count = renewed(PAGE, "", lambda _: "x|y\n")
    assert count == 2
    assert both.count("x|y\n<!-- end -->") == 2


@pytest.mark.recipe
def test_a_command_gives_its_tables_with_their_titles_and_nothing_else():
    made = tables_of(["bench", "fusion", "--frames", "2", "--repeats", "1", "--device", "cpu"])
    title, empty, columns, line, *rows = made.splitlines()
    assert title == "2 frames, 1 thread, medians of 1"
    assert empty == ""
    assert columns.startswith("|  | layers | type | pass | ms | reference / ours |")
    assert re.fullmatch(r"\|( --- \|)+", line)
    assert all(row.count(" | ") == columns.count(" | ") for row in rows)


def test_every_place_in_the_docs_is_whole_and_its_command_is_one():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        places = [*PLACE.finditer(text)]
        assert text.count("<!-- table:") == text.count("<!-- end -->") == len(places), page
        for place in places:
            parse(["speechfuse", *shlex.split(place["command"])], page.name)
