"""The quickstart: synthetic speech, two small encoders, three tasks, six ways to fuse them."""

from __future__ import annotations

from speechfuse.errors import RecipeError
from speechfuse.experiments.sweep import SweepFile, read_sweep
from speechfuse.resources import resource


def quickstart_sweep(seeds: int = 1) -> SweepFile:
    """The shipped sweep with so many seeds."""
    path = resource("recipes", "quickstart.yaml")
    if path is None:
        raise RecipeError("recipes/quickstart.yaml is missing from the installation; reinstall")
    sweep = read_sweep(path)
    first = sweep.seeds[0]
    return sweep.model_copy(update={"seeds": tuple(range(first, first + seeds))})
