"""What docs/papers.md names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "papers.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py): ([\w, ]+)`", TEXT)))


@pytest.mark.parametrize(("file", "names"), NAMED, ids=[f"{f} {n}" for f, n in NAMED])
def test_every_named_class_and_function_is_in_its_file(file, names):
    tree = ast.parse((ROOT / "src" / "speechfuse" / file).read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(names.split(", ")) <= defined


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []


def test_every_recipe_of_the_papers_is_listed():
    named = set(re.findall(r"\[(\w+)\]\(\.\./recipes/unify/\1\.yaml\)", TEXT))
    assert named == {p.stem for p in (ROOT / "recipes" / "unify").glob("*.yaml")} - {"grid"}


def test_every_line_of_a_table_names_code_or_says_that_there_is_none():
    definitions = TEXT[TEXT.index("## Definitions") : TEXT.index("## Recipes")]
    rows = [line for line in definitions.splitlines() if line.startswith("| ")]
    assert len(rows) > 25
    for row in rows:
        if not row.startswith(("| paper", "| what")):
            assert re.search(r"`[\w/]+\.py: ", row) or "not here" in row, row
