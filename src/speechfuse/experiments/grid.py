"""Rows of a sweep from a table of encoders, interfaces and published numbers (recipes/unify)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.recipe import explain, merged, read_yaml

ANY = "any"  # column


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Strict):
    """What a number of this column is, in percent."""

    task: str
    metric: str
    cells_of: str | None = None  # another column with the same cells, where none are published
    averaged: bool = False  # over the monolingual runs, so it stands beside their average


class GridRow(_Strict):
    """One fusion of some encoders, in every column that it has a number in."""

    encoders: tuple[str, ...] | dict[str, tuple[str, ...]]  # the same for all columns, or by column
    interface: str
    published: dict[str, float] = Field(min_length=1)  # by column
    languages: dict[str, tuple[float, ...]] = {}  # of every monolingual run, by column

    def encoders_of(self, column: str) -> tuple[str, ...]:
        if isinstance(self.encoders, tuple):
            return self.encoders
        return self.encoders.get(column, self.encoders.get(ANY, ()))


class Grid(_Strict):
    """The file as it is written."""

    encoders: dict[str, dict[str, Any]]
    interfaces: dict[str, dict[str, Any]]
    columns: dict[str, Column]
    mono_runs: tuple[str, ...] = ()
    alone_as: dict[str, str] = {}  # of one model the same interface, by the name of this one
    rows: dict[str, GridRow]


class GridChoice(_Strict):
    """Which column of which grid the rows of a sweep are; the file lies beside the sweep."""

    file: str
    column: str


def read_grid(path: Path) -> Grid:
    """Raises RecipeError for all that is wrong with a grid."""
    try:
        grid = Grid.model_validate(read_yaml(path))
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in explain(error, Grid))) from error
    wrong = []
    for name, row in grid.rows.items():
        named = {e for column in grid.columns for e in row.encoders_of(column)}
        wrong += [
            f"{path}: row '{name}': no {what} '{one}'; {did_you_mean(one, known)}"
            for what, found, known in (
                ("encoder", named, grid.encoders),
                ("interface", [row.interface], grid.interfaces),
                ("column", row.published, grid.columns),
            )
            for one in found
            if one not in known
        ]
    if wrong:
        raise RecipeError("\n".join(wrong))
    return grid


def with_grid_rows(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A sweep as it was read, with the rows and the upstreams of its grid, if it names one.

    What the sweep says itself is laid over. folder: of the sweep.

    Raises:
        RecipeError: no such grid or column, or what is wrong with the grid.
    """
    if "grid" not in data:
        return dict(data)
    try:
        choice = GridChoice.model_validate(data["grid"])
    except ValidationError as error:
        lines = explain(error, GridChoice)
        raise RecipeError("\n".join(f"grid.{line}" for line in lines)) from error
    grid = read_grid(folder / choice.file)
    if choice.column not in grid.columns:
        hint = did_you_mean(choice.column, grid.columns)
        raise RecipeError(f"grid.column: no column '{choice.column}' in {choice.file}; {hint}")
    found = {"recipe": {"upstreams": {}}, "rows": grid_rows(grid, choice.column)}
    for row in found["rows"].values():
        found["recipe"]["upstreams"].update({name: grid.encoders[name] for name in row["use"]})
    return merged(found, {key: value for key, value in data.items() if key != "grid"})


def grid_rows(grid: Grid, column: str) -> dict[str, Any]:
    """The rows of a sweep: every cell of a column as a change to the recipe of its task."""
    about = grid.columns[column]
    cells = about.cells_of or column
    rows: dict[str, dict[str, Any]] = {}
    for name, row in grid.rows.items():
        if cells not in row.published:
            continue
        rows[name] = {
            "use": list(row.encoders_of(column)),
            "fusion": grid.interfaces[row.interface],
        }
        if alone := _alone(grid, row, column, cells):
            rows[name]["gain_over"] = alone
        number: Any = row.published.get(column)
        if about.averaged and number is not None:
            rows[name]["published_average"] = {about.task: {about.metric: number}}
            by_run = zip(grid.mono_runs, row.languages.get(column, ()), strict=False)
            number = dict(by_run) or None
        if number is not None:
            rows[name]["published"] = {about.task: {about.metric: number}}
    return rows


def _alone(grid: Grid, fused: GridRow, column: str, cells: str) -> list[str]:
    """The rows of each model of a fusion alone with the same interface, if all are there."""
    models = fused.encoders_of(column)
    interface = grid.alone_as.get(fused.interface, fused.interface)
    found = {
        row.encoders_of(column): name
        for name, row in grid.rows.items()
        if cells in row.published and row.interface == interface
    }
    alone = [found[model,] for model in models if (model,) in found]
    return alone if len(alone) == len(models) > 1 else []
