"""What the reference pages take from the code: fields of a recipe, parts, commands."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from speechfuse import catalog, cli, recipe

SECTIONS = {  # classes of a recipe: where their fields stand in the file
    "Recipe": "the whole file",
    "FusionRecipe": "fusion",
    "ContextRecipe": "context",
    "TaskRecipe": "tasks.NAME",
    "SplitRecipe": "tasks.NAME.split",
    "AugmentRecipe": "tasks.NAME.augment",
    "NoiseRecipe": "tasks.NAME.augment.noise",
    "TrainingRecipe": "training",
    "LoraRecipe": "training.lora",
    "StoreRecipe": "store",
}


def recipe_fields() -> str:
    """A table for each section, its fields with type, default and the comment beside them."""
    text = Path(recipe.__file__).read_text()
    comments = _comments(text)
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    return "\n".join(
        line
        for name, where in SECTIONS.items()
        for line in _section(classes[name], where, comments)
    )


def _comments(text: str) -> dict[int, tuple[str, bool]]:
    """By line: the comment, and whether it stands alone there."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.strip().startswith("#")
            found[token.start[0]] = (token.string.lstrip("# "), alone)
    return found


def _section(
    node: ast.ClassDef, where: str, comments: dict[int, tuple[str, bool]]
) -> Iterator[str]:
    yield f"## {where}\n\n{ast.get_docstring(node) or ''}\n"
    yield "| field | left out | |\n|---|---|---|"
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            default, limits = _default(field.value)
            said = _said(field, comments)
            about = [f"`{_kind(field.annotation)}`", limits, said[:1].upper() + said[1:]]
            yield f"| `{field.target.id}` | {default} | {'. '.join(x for x in about if x)} |"
    yield ""


def _kind(annotation: ast.expr) -> str:
    """A type as a recipe's author sees it."""
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", ast.unparse(annotation))
    text = re.sub(r"Literal\[([^\]]*)\]", r"\1", text).replace("'", "")
    for name, section in SECTIONS.items():
        text = re.sub(rf"\b{name}\b", f"section {section}", text)
    return text.replace(" | None", "").replace(" | ", " or ")


def _default(value: ast.expr | None) -> tuple[str, str]:
    """What a field is if left out, and its limits."""
    if value is None:
        return "needed", ""
    limits = ""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        limits = ", ".join(
            f"{signs[word.arg]} {ast.unparse(word.value).replace('**', '^').replace(' ', '')}"
            for word in value.keywords
            if word.arg in signs
        ).capitalize()
        if not value.args:
            return "needed", limits
        value = value.args[0]
    if isinstance(value, ast.Call):  # a section, or a part by its kind
        return (f"`{ast.unparse(value.keywords[0].value)}`" if value.keywords else ""), limits
    shown = ast.unparse(value).replace("None", "").strip("'")
    return (f"`{shown}`" if shown else ""), limits


def _said(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment above a field, or the one beside it with the lines that continue it."""
    above: list[str] = []
    line = field.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    if line in comments and above and above[0][0].islower():
        above = []  # it goes on with what stands beside the field above
    beside, line = [], field.end_lineno or field.lineno
    if line in comments:
        beside.append(comments[line][0])
        while line + 1 in comments and comments[line + 1][1] and comments[line + 1][0][0].islower():
            line += 1
            beside.append(comments[line][0])
    return " ".join(above + beside)


def parts() -> str:
    """Every part of the catalog with its docstring and options, by role."""
    lines = []
    for role, table in catalog.ROLES.items():
        lines.append(f"## {role}\n")
        for kind, cls in table.items():
            lines += [f"### `{kind}`\n", f"{inspect.getdoc(cls)}\n"]
            said = _options_said(cls)
            rows = []
            for option in catalog.option_lines(cls):
                name, _, default = option.partition(" = ")
                shown = f"`{default}`" if default else "needed"
                rows.append(f"| `{name}` | {shown} | {said.get(name, '')} |")
            if rows:
                lines += ["| option | left out | |", "|---|---|---|", *rows, ""]
            lines.append(f"Class `{cls.__module__}:{cls.__name__}`.\n")
    return "\n".join(lines)


def _options_said(cls: type[Any]) -> dict[str, str]:
    """By option, what the constructor's docstring says of it, as `name: text.` or `a, b: text.`."""
    text = " ".join((inspect.getdoc(cls.__init__) or "").partition("Raises:")[0].split())
    names = "|".join(inspect.signature(cls).parameters)
    found = re.split(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*): ", text)
    said = {}
    for heads, about in zip(found[1::2], found[2::2], strict=True):
        shown = about.strip()[:1].upper() + about.strip()[1:]
        said.update(dict.fromkeys(heads.split(", "), shown.replace("|", "\\|")))
    return said


def commands() -> str:
    """Every command with its arguments and options, as its own --help has them."""
    group = typer.main.get_command(cli.app)
    context = typer.Context(group, info_name="speechfuse")
    lines = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = typer.Context(command, info_name=name, parent=context)
        usage = " ".join(["speechfuse", name, *command.collect_usage_pieces(inner)])
        lines += [f"## {name}\n", f"```text\n{usage}\n```\n", f"{command.help}\n"]
        rows = []
        for one in command.get_params(inner)[:-1]:  # the last is --help
            names, said = _cells(one.get_help_record(inner))
            of = getattr(one, "rich_help_panel", None)
            rows.append(f"| `{names}` | {f'{of}: ' if of else ''}{said} |")
        if rows:
            lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _cells(record: tuple[str, str]) -> list[str]:
    """The columns of a line of --help, as they may stand in a table."""
    return [text.replace("|", "\\|") for text in record]


MADE: dict[str, Callable[[], str]] = {
    "<!-- made: recipe fields -->": recipe_fields,
    "<!-- made: parts -->": parts,
    "<!-- made: commands -->": commands,
}
