"""From a recipe to parts: the only place where specs meet constructors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speechfuse import catalog
from speechfuse.alignment import aligned_specs
from speechfuse.contracts import Fusion, Head, Interface, Merge, Task, Upstream, UpstreamPlan
from speechfuse.errors import RecipeError
from speechfuse.fusion import LayersFirst, MergeFirst
from speechfuse.model import SHARED, FusionModel
from speechfuse.recipe import Part, Recipe, TaskRecipe
from speechfuse.types import StackSpec


def check_parts(recipe: Recipe) -> None:
    """Resolve every part and read every option, without making anything.

    Raises:
        RecipeError: all unknown parts and options at once, one line each.
    """
    wrong: list[str] = []

    def look(where: str, role: str, kind: str, options: Mapping[str, Any]) -> None:
        try:
            catalog.checked_options(role, kind, options)
        except RecipeError as error:
            wrong.extend(f"{where}: {line}" for line in str(error).splitlines())

    for name, part in recipe.upstreams.items():
        look(f"upstreams.{name}", "upstream", part.kind, part.options)
    look("fusion.merge", "merge", recipe.fusion.merge.kind, recipe.fusion.merge.options)
    interface = recipe.fusion.interface
    look("fusion.interface", "interface", interface.kind, interface.options)
    for name, task in recipe.tasks.items():
        look(f"tasks.{name}", "task", task.kind or name, task.options)
        look(f"tasks.{name}.head", "head", task.head.kind, task.head.options)
    if wrong:
        raise RecipeError("\n".join(wrong))


def upstream_options(recipe: Recipe, name: str) -> dict[str, Any]:
    """An upstream's options, with the recipe's length policy if the upstream has one."""
    part = recipe.upstreams[name]
    options = catalog.checked_options("upstream", part.kind, part.options)
    cls = catalog.find("upstream", part.kind)
    if "length_policy" in inspect.signature(cls).parameters:
        options.setdefault("length_policy", recipe.length_policy)
    return options


def plan_upstream(recipe: Recipe, name: str) -> UpstreamPlan:
    """Shapes and cost of one upstream, without its weights."""
    cls = catalog.find("upstream", recipe.upstreams[name].kind)
    plan: UpstreamPlan = cls.plan(**upstream_options(recipe, name))
    return plan


def build_upstream(recipe: Recipe, name: str) -> Upstream:
    """One upstream with its weights, frozen."""
    cls = catalog.find("upstream", recipe.upstreams[name].kind)
    upstream: Upstream = cls(**upstream_options(recipe, name))
    return upstream.eval().requires_grad_(False)


def build_task(name: str, entry: TaskRecipe) -> Task:
    """What is asked, not yet fitted to data."""
    kind = entry.kind or name
    task: Task = catalog.find("task", kind)(**catalog.checked_options("task", kind, entry.options))
    return task


def build_fusion(recipe: Recipe, specs: Sequence[StackSpec], tasks: Sequence[str]) -> Fusion:
    """Merge and interface for stacks of these shapes."""
    choice = recipe.fusion

    def make(role: str, part: Part, *given: Any, **filled: Any) -> Any:
        options = catalog.checked_options(role, part.kind, part.options)
        return catalog.find(role, part.kind)(*given, **filled, **options)

    def interface(spec: StackSpec) -> Interface:
        part: Interface = make("interface", choice.interface, spec, tasks=tasks)
        return part

    aligned = aligned_specs(specs)
    if choice.order == "layers_first":
        return LayersFirst(
            [interface(spec) for spec in specs], aligned[0].frame_rate, normalize=choice.normalize
        )
    merge: Merge = make("merge", choice.merge, aligned)
    return MergeFirst(merge, interface(merge.spec), normalize=choice.normalize)


def build_head(entry: TaskRecipe, in_dim: int, sizes: Mapping[str, Any]) -> Head:
    """A head that reads frames of `in_dim`; sizes: what the task knows of its data."""
    cls = catalog.find("head", entry.head.kind)
    options = catalog.checked_options("head", entry.head.kind, entry.head.options)
    taken = inspect.signature(cls).parameters
    missing = [
        name
        for name in catalog.FILLED_IN
        if name in taken
        and name not in sizes
        and taken[name].default is inspect.Parameter.empty
    ]
    if missing:
        raise RecipeError(
            f"head '{entry.head.kind}' needs {missing[0]}, which this task does not give; "
            "it is a head for another kind of task"
        )
    filled = {name: value for name, value in sizes.items() if name in taken}
    head: Head = cls(in_dim, **filled, **options)
    return head


def build_model(
    recipe: Recipe, specs: Sequence[StackSpec], tasks: Mapping[str, Task]
) -> FusionModel:
    """The trained part for stacks of these shapes; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.fusion.per_task:
            fusions = {name: build_fusion(recipe, specs, [name]) for name in tasks}
        else:
            fusions = {SHARED: build_fusion(recipe, specs, list(tasks))}
        heads = {
            name: build_head(
                recipe.tasks[name],
                fusions[name if recipe.fusion.per_task else SHARED].out_dim,
                task.head_options(),
            )
            for name, task in tasks.items()
        }
    return FusionModel(fusions, heads)
