"""What many hours of audio take on many GPUs: shards, time, room and money, by measured rates."""

from __future__ import annotations

from collections.abc import Mapping

from speechfuse import build
from speechfuse.cache.plans import SHARD_BYTES, SHARD_SECONDS
from speechfuse.cache.shards import DTYPES
from speechfuse.contracts import UpstreamPlan
from speechfuse.errors import RecipeError
from speechfuse.rates import MEASURE, check_given
from speechfuse.recipe import Recipe, TaskRecipe
from speechfuse.types import Table


def scale_tables(
    recipe: Recipe,
    hours: float,
    gpus: int,
    rates: Mapping[str, float],
    *,
    training_rate: float | None = None,
    reading: float = 1.0,
    price: float = 0.0,
    where: str = "",
    device: str = "cuda",
) -> list[Table]:
    """Tables: extraction, storage in every type, and an epoch of training on what is stored.

    rates: audio seconds that an upstream takes in a second of one GPU, by its name, or one for all
    under "". training_rate: the same of training on stored layers. reading: GB that a GPU is given
    in a second. price: of an hour of one GPU. where: rates were measured, in words. device: that
    they are of; with cpu it is CPUs that are spoken of. Of the hours as many copies are made as of
    the task's training utterances that has the most.

    Raises:
        RecipeError: an upstream without a rate, a rate of none, or nothing that is stored.
    """
    tuned = build.tuned_upstreams(recipe)
    frozen = [name for name in recipe.upstreams if name not in tuned]
    if not frozen:
        raise RecipeError("every upstream is trained, so that nothing is extracted or stored")
    plans = {name: build.build_upstream(recipe, name).plan for name in frozen}
    found = _rates(plans, rates)
    unit = "CPU" if device == "cpu" else "GPU"
    given, hours = hours, hours * (1 + max(map(_copies, recipe.tasks.values())))
    seconds = 3600 * hours
    sizes = {name: seconds * _bytes(plan, recipe.store.dtype) for name, plan in plans.items()}
    work = {name: hours / rate for name, rate in found.items()}  # hours of one GPU
    rows = [
        [
            name,
            f"{found[name]:.4g}",
            f"{_shards(plan, recipe.store.dtype, seconds):,}",
            *_taken(work[name], gpus, price),
        ]
        for name, plan in plans.items()
    ]
    if len(rows) > 1:
        rows.append(["all", "", "", *_taken(sum(work.values()), gpus, price)])
    money = ["cost"] if price else []
    columns = ["upstream", f"audio s / s of a {unit}", "shards", f"{unit} hours", "hours", *money]
    title = f"Extraction of {given:,g} h"
    title += f" and {hours - given:,.0f} h of altered copies" if hours > given else ""
    title += f" on {gpus} {unit}s" + (f"; rates of {where}" if where else "")
    tables: list[Table] = [(title, columns, rows)]
    rows = [
        [name, *(f"{seconds * _bytes(plan, dtype) / 1e12:,.1f}" for dtype in DTYPES)]
        for name, plan in plans.items()
    ]
    tables.append(("Stored layers, TB", ["upstream", *DTYPES], rows))
    read = sum(sizes.values()) / (1e9 * reading) / 3600
    what = f"reading {recipe.store.dtype} at {reading:g} GB/s for each {unit}"
    rows = [[what, *_taken(read, gpus, price)]]
    if training_rate:
        what = f"steps at {training_rate:g} audio s / s of a {unit}"
        rows.append([what, *_taken(hours / training_rate, gpus, price)])
    title = "An epoch of training; both at once, the longer counts"
    return [*tables, (title, ["", f"{unit} hours", "hours", *money], rows)]


def _rates(plans: Mapping[str, UpstreamPlan], given: Mapping[str, float]) -> dict[str, float]:
    check_given(plans, given)
    if missing := [name for name in plans if name not in given and "" not in given]:
        raise RecipeError(f"no rate of {', '.join(missing)}; {MEASURE}")
    return {name: given.get(name, given.get("", 0.0)) for name in plans}


def _copies(task: TaskRecipe) -> float:
    """Seconds of altered copies for a second of a task's training utterances."""
    if task.augment is None:
        return 0.0
    noise = task.augment.noise.copies if task.augment.noise else 0
    return noise + sum(1 / speed for speed in task.augment.speeds)


def _bytes(plan: UpstreamPlan, dtype: str) -> float:
    """Of a second of audio; what int8 keeps beside it, a scale for each clip, is below 1 %."""
    spec = plan.spec
    return spec.frame_rate * spec.num_layers * spec.dim * DTYPES[dtype].itemsize


def _shards(plan: UpstreamPlan, dtype: str, seconds: float) -> int:
    return round(seconds / min(SHARD_BYTES / _bytes(plan, dtype), SHARD_SECONDS)) or 1


def _taken(work: float, gpus: int, price: float) -> list[str]:
    """work: hours of one GPU."""
    return [f"{work:,.0f}", f"{work / gpus:,.1f}", *([f"{work * price:,.0f}"] if price else [])]
