"""From a recipe to parts: the only place where specs meet constructors."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from speechfuse import catalog
from speechfuse.alignment import aligned_specs
from speechfuse.augment import SpecAugment, UtteranceNorm
from speechfuse.contracts import Fitted, Fusion, Head, Interface, Merge, Task, Upstream
from speechfuse.errors import RecipeError
from speechfuse.fusion import LayersFirst, MergeFirst
from speechfuse.model import SHARED, FusionModel
from speechfuse.ops import seeded
from speechfuse.prompting import build_reader, read_at
from speechfuse.recipe import (
    SECTIONS,
    ContextRecipe,
    FusionRecipe,
    Part,
    Recipe,
    TaskRecipe,
    load_recipe,
)
from speechfuse.reduction import Reduced, reduction, refuse_crops, refuse_inexact
from speechfuse.tuning import tune
from speechfuse.types import StackSpec

PLACE = ("source", "revision")  # where an upstream comes from, which its layers do not depend on


def read_recipe(
    source: Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    refuse_repeats: bool = True,
    expand: bool = True,
) -> Recipe:
    """A recipe whose parts and options are all known.

    refuse_repeats: an encoder that is there twice, unless the recipe allows it. expand: environment
    variables in it.

    Raises:
        RecipeError: all that is wrong with it, one line each, or an encoder that is there twice.
    """
    recipe = _resolved(
        load_recipe(source, overrides, check=_wrong_parts, expand=expand, elsewhere=_settings_named)
    )
    for name, part in recipe.upstreams.items():
        if recipe.fusion.drop_state_0 and part.options.get("layers") is not None:
            raise RecipeError(
                f"fusion.drop_state_0 would drop the first of the layers that upstream '{name}' "
                "is asked for; leave 0 out of its layers, and set fusion.drop_state_0=false"
            )
    tuned = tuned_upstreams(recipe)
    if refuse_repeats and not recipe.fusion.allow_repeats:
        _refuse_repeats(recipe.upstreams, tuned)
    refuse_inexact(recipe, tuned)
    return recipe


def _refuse_repeats(upstreams: Mapping[str, Part], tuned: Mapping[str, str]) -> None:
    """One kind with equal options, defaults counted, is one encoder; frozen and tuned are two.

    Nothing is read or fetched for this; weights are compared when a run begins.
    """
    for (name, part), (other, twin) in combinations(upstreams.items(), 2):
        if part == twin and tuned.get(name) == tuned.get(other):
            raise _repeated(name, other, f"kind '{part.kind}', all options equal")


def refuse_equal_weights(recipe: Recipe, known: Mapping[str, Mapping[str, str]]) -> None:
    """Of two names or folders with equal content, one is enough; known: the upstreams' identities.

    Two are one if configuration and weights have equal hashes, or the same seed drew them, if both
    are frozen or what is trained of them is equal, and if the options give every clip the same
    layers: `whisper_pad` makes two of Whisper and one of HuBERT, `length_policy` masked and equal
    are one.

    Raises:
        RecipeError: there are such two, and the recipe does not ask for them.
    """

    if recipe.fusion.allow_repeats:
        return
    for name, other in combinations(recipe.upstreams, 2):
        if recipe.upstreams[name].kind != recipe.upstreams[other].kind:
            continue
        if content(known[name]) != content(known[other]):
            continue
        one, twin = build_upstream(recipe, name), build_upstream(recipe, other)
        if one.manner() == twin.manner() and one.layers == twin.layers:
            sources = f"{known[name]['source']} and {known[other]['source']}"
            raise _repeated(name, other, f"equal configuration and weights in {sources}")


def content(identity: Mapping[str, str]) -> dict[str, str]:
    """What an upstream is, wherever it lies."""
    where = PLACE if "config_sha256" in identity else ()
    return {key: value for key, value in identity.items() if key not in where}


def _repeated(name: str, other: str, why: str) -> RecipeError:
    return RecipeError(
        f"upstreams '{name}' and '{other}' are the same encoder ({why}), so the second tells "
        "nothing new; leave one out, change an option that changes its layers, or ask for it with "
        "fusion.allow_repeats=true"
    )


def _resolved(recipe: Recipe) -> Recipe:
    """The recipe with the options that it leaves to the parts' defaults written out."""

    def full(role: str, part: Part) -> Part:
        return Part(kind=part.kind, **catalog.checked_options(role, part.kind, part.options))

    fusion = recipe.fusion.model_copy(
        update={
            "merge": full("merge", recipe.fusion.merge),
            "interface": full("interface", recipe.fusion.interface),
        }
    )
    context = recipe.context
    if context is not None:
        options = catalog.checked_options("context", context.kind, context.options)
        part = full("interface", context.interface)
        context = context.model_copy(update={**options, "interface": part})
    tasks = {}
    for name, entry in recipe.tasks.items():
        options = catalog.checked_options("task", entry.kind or name, entry.options)
        if options.get("units", "") is None:
            options["units"] = catalog.find("head", entry.head.kind).units
        tasks[name] = entry.model_copy(update={**options, "head": full("head", entry.head)})
    upstreams = {
        name: Part(kind=part.kind, **upstream_options(recipe, name))
        for name, part in recipe.upstreams.items()
    }
    return recipe.model_copy(
        update={"fusion": fusion, "context": context, "tasks": tasks, "upstreams": upstreams}
    )


def _wrong_parts(data: Mapping[str, Any]) -> list[str]:
    """Unknown parts and options of a recipe as it was read, well-formed or not."""
    wrong = [
        f"tasks.{name}: the name is taken; choose another and give its kind"
        for name in _section(data, "tasks")
        if name == SHARED or hasattr(torch.nn.ModuleDict, str(name))
    ]
    for where, (role, kind, own, entry) in _parts(data).items():
        options = {k: v for k, v in entry.items() if k != "kind" and k not in own}
        try:
            catalog.checked_options(role, kind, options, partial(_settings_named, data))
        except RecipeError as error:
            wrong.extend(f"{where}: {line}" for line in str(error).splitlines())
    return wrong or [
        f"tasks.{name}.head: {line}"
        for name, task in _section(data, "tasks").items()
        if isinstance(task, Mapping)
        and (line := _mismatch(task.get("kind") or name, task.get("head")))
    ]


_Entry = tuple[str, str, Iterable[str], Mapping[str, Any]]  # role, kind, fields, as it was read


def _parts(data: Mapping[str, Any]) -> dict[str, _Entry]:
    """By place; what has no kind that could be looked for, the recipe's own check tells."""
    found: dict[str, _Entry] = {}

    def add(where: str, role: str, entry: Any, kind: Any = None, own: Iterable[str] = ()) -> None:
        if isinstance(entry, Mapping) and isinstance(kind := entry.get("kind", kind), str):
            found[where] = role, kind, own, entry

    for name, part in _section(data, "upstreams").items():
        add(f"upstreams.{name}", "upstream", part)
    for name in ("merge", "interface"):
        add(f"fusion.{name}", name, _section(data, "fusion").get(name))
    context, fields = _section(data, "context"), ContextRecipe.model_fields
    add("context", "context", data.get("context"), fields["kind"].default, fields)
    add("context.interface", "interface", context.get("interface"))
    for name, task in _section(data, "tasks").items():
        add(f"tasks.{name}", "task", task, name, TaskRecipe.model_fields)
        add(f"tasks.{name}.head", "head", _section(_section(data, "tasks"), name).get("head"))
    return found


def _section(of: Any, name: str) -> Mapping[str, Any]:
    found = of.get(name) if isinstance(of, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _settings_named(data: Mapping[str, Any], name: str) -> list[str]:
    """Where in this recipe a setting of that name may stand."""
    known: dict[str, Iterable[str]] = {
        section: form.model_fields for section, form in SECTIONS.items()
    }
    for where, (role, kind, own, _) in _parts(data).items():
        with suppress(RecipeError):  # of an unknown kind
            known[where] = [*own, *catalog.option_names(role, kind)]
    return [f"{where}.{name}" if where else name for where, names in known.items() if name in names]


def _mismatch(task: Any, head: Any) -> str | None:
    """What is wrong with a task's head, both of them known; None if it answers what is asked."""
    kind = head.get("kind") if isinstance(head, Mapping) else None
    if not isinstance(kind, str) or not isinstance(task, str):
        return None
    wanted = catalog.find("task", task).reads
    if catalog.find("head", kind).predicts == wanted:
        return None
    fitting = [kind for kind, cls in catalog.ROLES["head"].items() if cls.predicts == wanted]
    return f"'{head['kind']}' does not answer a task of kind '{task}'; use {' or '.join(fitting)}"


def upstream_options(recipe: Recipe, name: str) -> dict[str, Any]:
    """An upstream's options, with the recipe's length policy if the upstream has one."""
    part = recipe.upstreams[name]
    options = catalog.checked_options("upstream", part.kind, part.options)
    if "length_policy" in options and "length_policy" not in part.options:
        options["length_policy"] = recipe.length_policy
    return options


def layer_facts(recipe: Recipe, name: str, upstream: Upstream) -> dict[str, Any]:
    """All that decides an upstream's layers beside the audio, wherever it lies.

    Raises:
        RecipeError: a part of the user's own stands in no file.
    """
    if isinstance(upstream, Reduced):
        members = zip(recipe.upstreams, upstream.members(), strict=True)
        of = [layer_facts(recipe, one, member) for one, member in members]
        if len(of) == 1:
            return {"of": of, "merge": None, **upstream.manner()}
        merge = recipe.fusion.merge
        code = catalog.own_code("merge", merge.kind)
        return {"of": of, "merge": merge.model_dump(), **code, **upstream.manner()}
    identity = upstream.identity()
    where = {*identity} - {*content(identity)}
    options, kind = upstream_options(recipe, name), recipe.upstreams[name].kind
    return {
        "kind": kind,
        **catalog.own_code("upstream", kind),
        "identity": content(identity),
        "manner": dict(upstream.manner()),
        "options": {k: v for k, v in options.items() if k not in {*where, "layers"}},
        "length_policy": recipe.length_policy,
    }


def build_upstream(recipe: Recipe, name: str) -> Upstream:
    """One upstream: its shapes and cost are known, its weights not yet read."""
    cls = catalog.find("upstream", recipe.upstreams[name].kind)
    upstream: Upstream = cls(**upstream_options(recipe, name))
    return upstream


def frozen_upstreams(recipe: Recipe) -> dict[str, Upstream]:
    """Those whose layers are stored."""
    tuned = tuned_upstreams(recipe)
    return {name: build_upstream(recipe, name) for name in recipe.upstreams if name not in tuned}


def read_upstreams(recipe: Recipe) -> dict[str, Upstream]:
    """What the model reads the layers of, by name: each upstream, or all that are stored as one.

    Raises:
        RecipeError: crops that would not be the same.
        ShapeError: upstreams that cannot be merged.
    """
    upstreams = {name: build_upstream(recipe, name) for name in recipe.upstreams}
    if reduction(recipe) == "none":
        return upstreams
    choice, specs = recipe.fusion, [one.plan.spec for one in upstreams.values()]
    drop = choice.drop_state_0 and len({spec.num_layers for spec in specs}) > 1
    merge: Merge = _made("merge", choice.merge, aligned_specs(_kept(specs) if drop else specs))
    refuse_crops(recipe, [spec.frame_rate for spec in specs], merge.spec.frame_rate)
    one = Reduced(
        [*upstreams.values()],
        merge,
        normalize=choice.normalize,
        drop_state_0=drop,
        mean=reduction(recipe) == "mean",
    )
    return {" + ".join(upstreams): one}


def tuned_upstreams(recipe: Recipe) -> dict[str, str]:
    """The upstreams that are trained, in recipe order, and what of them, in words.

    Raises:
        RecipeError: one has nothing that can be trained, or all batches must be of one length.
    """
    training, found = recipe.training, {}
    asked = training.train_upstream
    for name, part in recipe.upstreams.items():
        which = training.blocks_of(name)
        if which == "none":
            continue
        if catalog.find("upstream", part.kind).blocks is not Upstream.blocks:
            options = upstream_options(recipe, name)
            if options.get("compute", "float32") != "float32":
                raise RecipeError(
                    f"upstream '{name}' cannot be trained with compute {options['compute']}, which "
                    "is of frozen encoders; use training.precision=bf16-mixed"
                )
            if options.get("length_policy") == "equal":
                raise RecipeError(
                    f"upstream '{name}' cannot be trained with length_policy equal, batches of "
                    "training mix lengths; use masked, which is as exact"
                )
            found[name] = f"{which}, {training.lora.text()}" if training.lora else which
        elif isinstance(asked, Mapping):
            raise RecipeError(f"training.train_upstream.{name}: '{part.kind}' has no weights")
    if not found and isinstance(asked, str) and asked != "none":
        raise RecipeError("training.train_upstream: no upstream of this recipe has weights")
    return found


def build_tuned(recipe: Recipe) -> dict[str, Upstream]:
    """The upstreams that are trained, loaded, with gradients where they are asked for."""
    upstreams = {name: build_upstream(recipe, name) for name in tuned_upstreams(recipe)}
    tune(upstreams, recipe.training, recipe.seed)
    return upstreams


def identities(recipe: Recipe) -> dict[str, dict[str, str]]:
    """What a run keeps of each upstream instead of a copy."""
    tuned = tuned_upstreams(recipe)
    return {
        name: build_upstream(recipe, name).identity()
        | ({"trained": tuned[name]} if name in tuned else {})
        for name in recipe.upstreams
    }


def stack_specs(recipe: Recipe) -> list[StackSpec]:
    """The shape of each upstream's stack, in recipe order."""
    return [build_upstream(recipe, name).plan.spec for name in recipe.upstreams]


def build_task(name: str, entry: TaskRecipe) -> Task:
    """What is asked, not yet fitted to data."""
    kind = entry.kind or name
    task: Task = catalog.find("task", kind)(**catalog.checked_options("task", kind, entry.options))
    return task


def _made(role: str, part: Part, *given: Any, **filled: Any) -> Any:
    options = catalog.checked_options(role, part.kind, part.options)
    return catalog.find(role, part.kind)(*given, **filled, **options)


def _kept(specs: Sequence[StackSpec]) -> list[StackSpec]:
    """Without state 0 of those that have more than one."""
    return [replace(spec, num_layers=max(1, spec.num_layers - 1)) for spec in specs]


def build_fusion(
    recipe: Recipe, specs: Sequence[StackSpec], tasks: Sequence[str], *, reads_merged: bool = False
) -> Fusion:
    """Merge and interface for stacks of these shapes.

    reads_merged: it is given what a store has of the stacks when they were merged.
    """
    choice = recipe.fusion

    def interface(spec: StackSpec, **filled: int) -> Interface:
        part: Interface = _made("interface", choice.interface, spec, tasks=tasks, **filled)
        return part

    dropped = choice.drop_state_0 and any(spec.num_layers > 1 for spec in specs)
    if dropped:
        specs = _kept(specs)
    aligned = aligned_specs(specs)
    if choice.order == "layers_first":
        parts = [interface(spec) for spec in specs]
        left = [
            replace(s, num_layers=1, dim=p.out_dim) for s, p in zip(aligned, parts, strict=True)
        ]
        merge: Merge = _made("merge", choice.merge, left)
        _check_layers_first(choice, parts, times=merge.spec.frame_rate > left[0].frame_rate)
        return LayersFirst(parts, merge, normalize=choice.normalize, drop_state_0=dropped)
    merge = _made("merge", choice.merge, aligned)
    if merge.interface_dim is None:
        fused = interface(merge.spec)
    else:
        _check_sized(choice.interface.kind, choice.merge.kind, merge.interface_dim)
        fused = interface(merge.spec, out_dim=merge.interface_dim)
    if isinstance(fused, Fitted) and any(True for _ in merge.parameters()):
        raise RecipeError(
            f"interface '{choice.interface.kind}' is fitted before training, to what merge "
            f"'{choice.merge.kind}' gives, which learns and would give something else later; use a "
            "merge without parameters, or order 'layers_first'"
        )
    return MergeFirst(
        merge,
        fused,
        normalize=choice.normalize,
        drop_state_0=dropped,
        reads_merged=reads_merged,
    )


def _check_layers_first(choice: FusionRecipe, parts: Sequence[Interface], *, times: bool) -> None:
    """Refuse what a merge cannot do with one layer of each model, or with one vector of each."""
    projection = choice.merge.options.get("projection", "after")
    if projection not in ("after", "none"):
        raise RecipeError(
            f"order 'layers_first' leaves one layer of each model, so projection '{projection}' "
            "has nothing of its own to do; use after or none, or order 'merge_first'"
        )
    if times and any(part.pools for part in parts):
        raise RecipeError(
            f"interface '{choice.interface.kind}' gives one vector for each utterance, merge "
            f"'{choice.merge.kind}' would make several frames of them; use merge 'concat', 'add' "
            "or 'gated'"
        )


def _check_sized(interface: str, merge: str, dim: int) -> None:
    """Refuse an interface that cannot end in another width than it reads."""

    def sized(kind: str) -> bool:
        return "out_dim" in inspect.signature(catalog.find("interface", kind)).parameters

    if not sized(interface):
        able = " or ".join(f"'{kind}'" for kind in catalog.ROLES["interface"] if sized(kind))
        raise RecipeError(
            f"merge '{merge}' asks the interface to end in {dim} features, which '{interface}' "
            f"cannot; use interface {able}, or project after or before it"
        )


def build_head(entry: TaskRecipe, in_dim: int, sizes: Mapping[str, Any]) -> Head:
    """A head that reads frames of `in_dim`; sizes: what the task knows of its data."""
    cls = catalog.find("head", entry.head.kind)
    options = catalog.checked_options("head", entry.head.kind, entry.head.options)
    taken = inspect.signature(cls).parameters
    missing = [
        name
        for name in catalog.FILLED_IN
        if name in taken and name not in sizes and taken[name].default is inspect.Parameter.empty
    ]
    if missing:
        raise RecipeError(
            f"head '{entry.head.kind}' needs {missing[0]}, which this task does not give; "
            "it is a head for another kind of task"
        )
    if "loss_weights" in sizes and "loss_weights" not in taken:
        raise RecipeError(
            f"head '{entry.head.kind}' weighs no classes; leave class_weights out, or use a head "
            "that takes loss_weights, like 'classifier'"
        )
    filled = {name: value for name, value in sizes.items() if name in taken}
    head: Head = cls(in_dim, **filled, **options)
    return head


def build_model(
    recipe: Recipe, specs: Sequence[StackSpec], tasks: Mapping[str, Task]
) -> FusionModel:
    """The trained part for stacks of these shapes, or for what the recipe stores of them.

    The same seed gives a task the same weights, whatever other tasks there are.
    """
    per_task, merged = recipe.fusion.per_task, reduction(recipe) != "none"
    fusions = {}
    for name, readers in {n: [n] for n in tasks}.items() if per_task else [(SHARED, [*tasks])]:
        with seeded(recipe.seed, "fusion", name):
            fusions[name] = build_fusion(recipe, specs, readers, reads_merged=merged)
    some = next(iter(fusions.values()))
    sizes = {name: task.head_options() for name, task in tasks.items()}
    reader = build_reader(recipe, some.out_dim, some.frame_rate, sizes)
    heads, places = {}, {}
    for name in tasks:
        fusion = fusions[name if per_task else SHARED]
        dim = reader.out_dim if reader else fusion.out_dim
        with seeded(recipe.seed, "head", name):
            heads[name] = build_head(recipe.tasks[name], dim, sizes[name])
        check_frames(recipe, name, fusion, heads[name])
        places[name] = read_at(recipe, name, heads[name])
    _check_fitted(recipe, fusions.values())
    before = {
        name: torch.nn.Sequential(*steps) for name in tasks if (steps := _before(recipe, name))
    }
    tuned = [*build_tuned(recipe).values()]
    return FusionModel(fusions, heads, before, tuned, reader, places)


def _check_fitted(recipe: Recipe, fusions: Iterable[Fusion]) -> None:
    """Refuse to fit an interface to layers that change in training, or of test speakers."""
    kind = recipe.fusion.interface.kind
    if not any(isinstance(m, Fitted) for fusion in fusions for m in fusion.modules()):
        return
    if tuned := tuned_upstreams(recipe):
        raise RecipeError(
            f"interface '{kind}' is fitted before training, to layers of {', '.join(tuned)} that "
            "are trained; leave training.train_upstream out, or use another interface"
        )
    for name, entry in recipe.tasks.items():
        if entry.split.all_test:
            raise RecipeError(
                f"task '{name}': split.all_test leaves nobody to fit interface '{kind}' to; name "
                "the speakers of each split"
            )


def _before(recipe: Recipe, name: str) -> list[torch.nn.Module]:
    """What a task asks to be done to frames before its head reads them."""
    entry = recipe.tasks[name]
    steps: list[torch.nn.Module] = []
    if entry.augment and entry.augment.masks:
        steps.append(SpecAugment(entry.augment))
    if entry.utterance_norm != "none":
        steps.append(UtteranceNorm(variance=entry.utterance_norm == "mean_variance"))
    return steps


def check_frames(recipe: Recipe, name: str, fusion: Fusion, head: Head) -> None:
    """Refuse to write a text, or to find turns, from a single vector or from a part of it."""
    every_frame = head.predicts in ("tokens", "turns")
    if recipe.tasks[name].crop_seconds and every_frame:
        what = "text" if head.predicts == "tokens" else "turns"
        raise RecipeError(
            f"task '{name}': crop_seconds would cut the speech and not the {what} that is learned; "
            "leave it out"
        )
    pooled = any(isinstance(m, Interface) and m.pools for m in fusion.modules())
    if pooled and _before(recipe, name):
        raise RecipeError(
            f"task '{name}': interface '{recipe.fusion.interface.kind}' gives one vector for each "
            "utterance, without frames to augment or to normalise; leave augment and "
            "utterance_norm out, or use another interface"
        )
    if pooled and every_frame:
        raise RecipeError(
            f"task '{name}': interface '{recipe.fusion.interface.kind}' gives one vector for each "
            f"utterance, a head that predicts {head.predicts} needs every frame; use another "
            "interface, or train this task in a recipe of its own"
        )
