"""What may be stored of upstreams, all layers of each or less to the same end, in bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from speechfuse import build
from speechfuse.cache.shards import DTYPES
from speechfuse.contracts import Upstream
from speechfuse.errors import RecipeError, ShapeError
from speechfuse.recipe import Recipe
from speechfuse.reduction import reduction, refuse_inexact, with_reduction
from speechfuse.types import StackSpec


class Form(NamedTuple):
    """The layers of one upstream, or what all of them are stored as."""

    name: str
    spec: StackSpec
    reduce: str  # none, merged or mean

    @property
    def mean(self) -> bool:
        """One frame for each utterance."""
        return self.reduce == "mean"

    def frame_bytes(self, dtype: str) -> int:
        """Without what int8 keeps beside it: four bytes for each layer and channel of an utterance,
        2.7 % of 3 s at 50 Hz.
        """
        return self.spec.num_layers * self.spec.dim * DTYPES[dtype].itemsize

    def bytes_of(self, seconds: float, utterances: float, dtype: str) -> float:
        """Of so much audio."""
        frames = utterances if self.mean else seconds * self.spec.frame_rate
        return frames * self.frame_bytes(dtype)


def forms(
    recipe: Recipe, frozen: Mapping[str, Upstream], tuned: Collection[str] = ()
) -> list[Form]:
    """Each frozen upstream by itself, then what may be stored in place of all, where it is exact.

    tuned: upstreams that are trained. The recipe's own form is that of its `reduction`.

    Raises:
        RecipeError, ShapeError: that one cannot be made.
    """
    found = [Form(name, one.plan.spec, "none") for name, one in frozen.items()]
    for kind in ("merged", "mean"):
        other = with_reduction(recipe, kind)
        try:
            refuse_inexact(other, tuned)
            if reduction(other) != "none":
                ((name, one),) = build.read_upstreams(other).items()
                found.append(Form(f"{name}, {kind}", one.plan.spec, kind))
        except (RecipeError, ShapeError):  # what is not exact is not offered
            if kind == reduction(recipe):
                raise
    return found
