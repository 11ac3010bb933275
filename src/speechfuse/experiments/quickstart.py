"""The quickstart: synthetic speech, two small encoders, three tasks, seven models."""

from __future__ import annotations

from collections.abc import Iterator

from speechfuse import catalog
from speechfuse.errors import RecipeError
from speechfuse.experiments.sweep import RowEntry, SweepFile, read_sweep
from speechfuse.resources import resource

BOTH = "both, weighted sums, concat"  # the row that further interfaces are a change of


def quickstart_sweep(seeds: int = 1, interfaces: str = "") -> SweepFile:
    """The shipped sweep with so many seeds.

    interfaces: kinds with commas between them, or all of the catalog; each is a further row, unless
    a row on both encoders has it.

    Raises:
        RecipeError: no such interface.
    """
    path = resource("recipes", "quickstart.yaml")
    if path is None:
        raise RecipeError("recipes/quickstart.yaml is missing from the installation; reinstall")
    sweep = read_sweep(path)
    first = sweep.seeds[0]
    return sweep.model_copy(
        update={
            "seeds": tuple(range(first, first + seeds)),
            "rows": {**sweep.rows, **dict(_further_rows(sweep, interfaces))},
        }
    )


def _further_rows(sweep: SweepFile, interfaces: str) -> Iterator[tuple[str, RowEntry]]:
    """Every interface on the encoders of the row BOTH, in its order and training."""
    like = sweep.rows[BOTH].model_dump()
    plain = sweep.recipe["fusion"]["interface"]["kind"]
    there = {
        (row.model_extra or {}).get("fusion", {}).get("interface", {}).get("kind", plain)
        for row in sweep.rows.values()
        if row.use == sweep.rows[BOTH].use
    }
    named = [name.strip() for name in interfaces.split(",") if name.strip()]
    kinds = [*catalog.ROLES["interface"]] if named == ["all"] else named
    for kind in dict.fromkeys(kinds):
        pools = catalog.find("interface", kind).pools
        if kind not in there:
            fusion = like.get("fusion", {}) | {"interface": {"kind": kind}}
            lacks = [*_of_every_frame(sweep)] if pools else []
            row = like | {"fusion": fusion, "leave_out": lacks}
            yield f"both, {kind}", RowEntry.model_validate(row)


def _of_every_frame(sweep: SweepFile) -> Iterator[str]:
    """Tasks that cannot be done with one vector for an utterance."""
    for name, entry in sweep.recipe["tasks"].items():
        if catalog.find("task", entry.get("kind", name)).reads in ("tokens", "turns"):
            yield name
