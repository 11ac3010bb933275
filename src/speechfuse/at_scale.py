"""What many hours of audio take on many GPUs: shards, time, room and money, by measured rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from speechfuse import build
from speechfuse.cache.plans import SHARD_BYTES, SHARD_SECONDS
from speechfuse.cache.shards import DTYPES
from speechfuse.contracts import UpstreamPlan
from speechfuse.errors import RecipeError
from speechfuse.forms import Form, forms
from speechfuse.rates import MEASURE, check_given
from speechfuse.recipe import Recipe, TaskRecipe
from speechfuse.reduction import reduction
from speechfuse.types import Table

UTTERANCE = 5.0  # seconds, where nothing tells: IEMOCAP's have 4.5, LibriSpeech's 12


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
    utterances: int | None = None,
) -> list[Table]:
    """Tables: extraction, storage in every type, and an epoch of training on what is stored.

    rates: audio seconds that an upstream takes in a second of one GPU, by its name, or one for all
    under "". training_rate: the same of training on stored layers. reading: GB that a GPU is given
    in a second. price: of an hour of one GPU. where: rates were measured, in words. device: that
    they are of; with cpu it is CPUs that are spoken of. utterances: in these hours, of `UTTERANCE`
    seconds if left out. Of the hours as many copies are made as of the task's training utterances
    that has the most.

    Raises:
        RecipeError: an upstream without a rate, a rate of none, or nothing that is stored.
    """
    tuned = build.tuned_upstreams(recipe)
    frozen = build.frozen_upstreams(recipe)
    if not frozen:
        raise RecipeError("every upstream is trained, so that nothing is extracted or stored")
    plans = {name: one.plan for name, one in frozen.items()}
    found, every = _rates(plans, rates), forms(recipe, frozen, tuned)
    kept = [form for form in every if form.reduce == reduction(recipe)]
    unit, dtype = "CPU" if device == "cpu" else "GPU", recipe.store.dtype
    longer, copies = max(map(_copies, recipe.tasks.values()))
    given, hours = hours, hours * (1 + longer)
    seconds = 3600 * hours
    count = (3600 * given / UTTERANCE if utterances is None else utterances) * (1 + copies)
    sizes = [form.bytes_of(seconds, count, dtype) for form in kept]
    shards = [f"{_shards(size, seconds):,}" for size in sizes]
    work = {name: hours / rate for name, rate in found.items()}  # hours of one GPU
    alone = shards if reduction(recipe) == "none" else [""] * len(plans)
    rows = [
        [name, f"{found[name]:.4g}", number, *_taken(work[name], gpus, price)]
        for name, number in zip(plans, alone, strict=True)
    ]
    if alone is not shards:
        rows.append([kept[0].name, "", shards[0], *_taken(sum(work.values()), gpus, price)])
    elif len(rows) > 1:
        rows.append(["all", "", "", *_taken(sum(work.values()), gpus, price)])
    money = ["cost"] if price else []
    columns = ["upstream", f"audio s / s of a {unit}", "shards", f"{unit} hours", "hours", *money]
    title = f"Extraction of {given:,g} h"
    title += f" and {hours - given:,.0f} h of altered copies" if hours > given else ""
    title += f" on {gpus} {unit}s" + (f"; rates of {where}" if where else "")
    tables: list[Table] = [(title, columns, rows), _sizes(recipe, every, seconds, count)]
    read = sum(sizes) / (1e9 * reading) / 3600
    what = f"reading {dtype} at {reading:g} GB/s for each {unit}"
    rows = [[what, *_taken(read, gpus, price)]]
    if training_rate:
        what = f"steps at {training_rate:g} audio s / s of a {unit}"
        rows.append([what, *_taken(hours / training_rate, gpus, price)])
    title = "An epoch of training; both at once, the longer counts"
    return [*tables, (title, ["", f"{unit} hours", "hours", *money], rows)]


def _sizes(recipe: Recipe, every: Sequence[Form], seconds: float, utterances: float) -> Table:
    """In every type; a mean is refused in int8."""
    sizes = {
        form.name: {
            dtype: form.bytes_of(seconds, utterances, dtype)
            for dtype in DTYPES
            if not (form.mean and dtype == "int8")
        }
        for form in every
    }
    largest = max(size for one in sizes.values() for size in one.values())
    unit, scale = ("TB", 1e12) if largest >= 1e12 else ("GB", 1e9)
    rows = [
        [name, *(_few(one[dtype] / scale) if dtype in one else "" for dtype in DTYPES)]
        for name, one in sizes.items()
    ]
    means = f"; means of {utterances:,.0f} utterances" if every[-1].mean else ""
    title = f"Stored layers, {unit} (reduce: {recipe.store.reduce}{means})"
    return title, ["upstream", *DTYPES], rows


def _rates(plans: Mapping[str, UpstreamPlan], given: Mapping[str, float]) -> dict[str, float]:
    check_given(plans, given)
    if missing := [name for name in plans if name not in given and "" not in given]:
        raise RecipeError(f"no rate of {', '.join(missing)}; {MEASURE}")
    return {name: given.get(name, given.get("", 0.0)) for name in plans}


def _copies(task: TaskRecipe) -> tuple[float, int]:
    """Seconds of altered copies for a second of a task's training utterances; copies of each."""
    if task.augment is None:
        return 0.0, 0
    noise, speeds = task.augment.noise.copies if task.augment.noise else 0, task.augment.speeds
    return noise + sum(1 / speed for speed in speeds), noise + len(speeds)


def _shards(size: float, seconds: float) -> int:
    return round(max(size / SHARD_BYTES, seconds / SHARD_SECONDS)) or 1


def _few(number: float) -> str:
    """Tenths, or two digits of what is less than one."""
    return f"{number:,.1f}" if number >= 1 else f"{number:#.2g}"


def _taken(work: float, gpus: int, price: float) -> list[str]:
    """work: hours of one GPU."""
    return [f"{work:,.0f}", f"{work / gpus:,.1f}", *([f"{work * price:,.0f}"] if price else [])]
