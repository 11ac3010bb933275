"""From a recipe's `context` to the prompted transformer, and what each task reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechfuse import catalog
from speechfuse.context.reading import PromptedFusion
from speechfuse.contracts import Context, Fitted, Head, Interface
from speechfuse.errors import RecipeError
from speechfuse.ops import seeded
from speechfuse.recipe import Recipe
from speechfuse.types import Where


def build_reader(
    recipe: Recipe, in_dim: int, frame_rate: float, sizes: Mapping[str, Mapping[str, Any]]
) -> PromptedFusion | None:
    """The prompted transformer and the fusion of its layers, if the recipe has a context.

    sizes: what each task knows of its data.
    """
    chosen = recipe.context
    if chosen is None:
        return None
    cls = catalog.find("context", chosen.kind)
    texts = [
        name for name in sizes if catalog.find("head", recipe.tasks[name].head.kind).reads == "text"
    ]
    with seeded(recipe.seed, "context"):
        context: Context = cls(
            in_dim,
            frame_rate,
            tasks=[*sizes],
            text_sizes={name: sizes[name]["num_tokens"] for name in texts},
            prompts={name: recipe.tasks[name].prompts for name in sizes},
            **catalog.checked_options("context", chosen.kind, chosen.options),
        )
        part = chosen.interface
        options = catalog.checked_options("interface", part.kind, part.options)
        interface: Interface = catalog.find("interface", part.kind)(
            context.spec, tasks=[*sizes], **options
        )
    if interface.pools or isinstance(interface, Fitted):
        raise RecipeError(
            f"context.interface: '{part.kind}' "
            + ("gives one vector for each utterance" if interface.pools else "is fitted before")
            + ", but positions of a transformer that learns are read one by one; use "
            "prompt_adaptive, or another interface"
        )
    return PromptedFusion(context, interface, normalize=chosen.normalize)


def read_at(recipe: Recipe, name: str, head: Head) -> Where:
    """Which positions of a prompted sequence a head reads.

    Raises:
        RecipeError: words to read or to write without a context, or one position where all are
            needed.
    """
    entry = recipe.tasks[name]
    if recipe.context is None:
        for what, there in (
            (f"head '{entry.head.kind}' writes", head.reads == "text"),
            ("read asks", entry.read is not None),
            ("prompts ask", bool(entry.prompts)),
        ):
            if there:
                raise RecipeError(
                    f"task '{name}': {what} for a prompted transformer, the recipe has none; add "
                    "context: {kind: prompted_transformer}"
                )
        return "speech"
    if head.reads == "text":
        if entry.read:
            raise RecipeError(
                f"task '{name}': head '{entry.head.kind}' reads the text it writes; leave read out"
            )
        return "text"
    if entry.read in ("prompt", "prefix") and head.predicts in ("tokens", "turns"):
        raise RecipeError(
            f"task '{name}': head '{entry.head.kind}' needs every frame; use read: speech, or head "
            "'text'"
        )
    return entry.read or ("speech" if head.predicts in ("tokens", "turns") else "prompt")
