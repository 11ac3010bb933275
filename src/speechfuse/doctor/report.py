"""All findings, in the order in which they are worth reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechfuse.doctor.finding import Finding, run_checks
from speechfuse.doctor.libraries import library_checks
from speechfuse.doctor.machine import machine_checks

if TYPE_CHECKING:  # what is broken has to be told, so nothing heavy is imported before it is
    from speechfuse.recipe import Recipe

STORES, BUDGET_GB = "stores", 20.0  # without a recipe, those of its defaults


def examine(recipe: Recipe | None = None, source: str | None = None) -> Iterator[Finding]:
    """Libraries, machine and encoders; one after the other, as they are found.

    recipe: whose encoders and store are looked at. source: of one encoder instead.
    """
    broken = False
    for one in run_checks(library_checks()):
        broken |= one.status == "problem"
        yield one
    stores = Path(recipe.store.folder if recipe else STORES)
    yield from run_checks(machine_checks(stores, recipe.store.budget_gb if recipe else BUDGET_GB))
    if recipe is None and source is None:
        return
    if broken:
        yield Finding(
            "encoders", "warning", "not looked at", "mend the libraries first, then look again"
        )
        return
    from speechfuse.doctor.encoder import encoder_checks, patients

    dtype = recipe.store.dtype if recipe else None
    for name, patient in patients(_parts(recipe, source)):
        first, *others = encoder_checks(name, patient, dtype)
        found = [*run_checks([first])]
        yield from found
        if found[0].status == "ok":  # else its weights cannot be read
            yield from run_checks(others)


def _parts(recipe: Recipe | None, source: str | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Kind and options of each encoder."""
    if recipe is None:
        return {"encoder": ("huggingface", {"source": source})}
    from speechfuse.build import upstream_options

    return {
        name: (part.kind, upstream_options(recipe, name)) for name, part in recipe.upstreams.items()
    }
