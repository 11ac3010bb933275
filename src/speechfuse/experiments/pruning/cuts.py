"""What is kept of each encoder, and the recipe that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechfuse import build
from speechfuse.contracts import UpstreamPlan
from speechfuse.errors import RunError
from speechfuse.recipe import Recipe


@dataclass(frozen=True)
class Encoder:
    """One of a run's encoders, and the layers of it that the fusion reads."""

    name: str
    layers: tuple[int, ...]  # their numbers in the encoder, rising
    plan: UpstreamPlan
    can_stop: bool  # it takes the option `layers`
    fewest: int = 1  # layers that are kept at least


@dataclass(frozen=True)
class Cut:
    """The layers that are kept of each encoder that is kept, by name in recipe order."""

    layers: Mapping[str, tuple[int, ...]]

    def without(self, name: str) -> Cut:
        return Cut({other: kept for other, kept in self.layers.items() if other != name})

    def lowest(self, name: str, count: int) -> Cut:
        """So many of the lowest layers of an encoder."""
        return Cut({**self.layers, name: self.layers[name][:count]})

    def text(self, encoders: Mapping[str, Encoder]) -> str:
        """Blocks that are left of each encoder, and of how many."""
        found = []
        for name, encoder in encoders.items():
            if name not in self.layers:
                found.append(f"{name} left out")
                continue
            had, kept = encoder.layers[-1], self.layers[name][-1]
            found.append(f"{name} {kept}" + (f" of {had}" if kept != had else ""))
        return ", ".join(found)


def encoders_of(recipe: Recipe) -> dict[str, Encoder]:
    """Those of a recipe, by name in its order; no weights are read."""
    tuned = build.tuned_upstreams(recipe)
    upstreams = {name: build.build_upstream(recipe, name) for name in recipe.upstreams}
    drop = recipe.fusion.drop_state_0
    several = [name for name, one in upstreams.items() if len(one.layers) > 1]
    able = [name for name in several if "layers" in build.upstream_options(recipe, name)]
    if drop and able != several:  # state 0 of the others would come back
        able = []
    found = {}
    for name, upstream in upstreams.items():
        layers = upstream.layers[1:] if drop and name in several else upstream.layers
        which = recipe.training.blocks_of(name) if name in tuned else "none"
        top = int(which.removeprefix("top_")) if which.startswith("top_") else 0
        fewest = min(len(layers), 1 + sum(number < top for number in layers))
        found[name] = Encoder(name, layers, upstream.plan, name in able, fewest)
    return found


def whole(encoders: Mapping[str, Encoder]) -> Cut:
    """Nothing is removed."""
    return Cut({name: encoder.layers for name, encoder in encoders.items()})


def reads_one(recipe: Recipe) -> bool:
    """Whether the interface reads a single layer, so that it is known what does not count."""
    return recipe.fusion.interface.kind == "single_layer"


def single_layers(recipe: Recipe, encoders: Mapping[str, Encoder]) -> Cut:
    """The one layer of each encoder that interface single_layer reads.

    Raises:
        RunError: it reads what lies between two layers of an encoder.
    """
    choice = recipe.fusion
    asked, found = int(choice.interface.options["layer"]), {}
    deepest = max(len(encoder.layers) for encoder in encoders.values())
    for name, encoder in encoders.items():
        count = len(encoder.layers)
        depth = count if choice.order == "layers_first" else deepest
        place = asked % depth * (count - 1) / max(1, depth - 1)  # as alignment spreads them
        if not place.is_integer():
            raise RunError(
                f"single_layer reads between layers {int(place)} and {int(place) + 1} of upstream "
                f"'{name}', which is merged with a deeper one; there is no block to stop at"
            )
        kept = (encoder.layers[int(place)],)
        found[name] = kept if encoder.can_stop else encoder.layers
    return Cut(found)


def cut_recipe(recipe: Recipe, cut: Cut, *, steps: int | None = None, rate: float = 1.0) -> Recipe:
    """The recipe of what is left; steps: of training, the recipe's own if None.

    rate: times the recipe's learning rates.
    """
    encoders = encoders_of(recipe)
    data: dict[str, Any] = recipe.model_dump(mode="json")
    if steps is not None:
        data["training"]["steps"] = steps
    for name in ("learning_rate", "upstream_learning_rate"):
        data["training"][name] *= rate
    if cut == whole(encoders):
        return build.read_recipe(data, refuse_repeats=False)
    data["upstreams"] = {name: data["upstreams"][name] for name in cut.layers}
    for name, kept in cut.layers.items():
        if encoders[name].can_stop:
            data["upstreams"][name]["layers"] = [*kept]
            data["fusion"]["drop_state_0"] = False  # the layers that are named are those read
    if all(len(kept) == 1 for kept in cut.layers.values()) and reads_one(recipe):
        data["fusion"]["interface"]["layer"] = 0
    _leave_out_of_training(data["training"], cut, recipe)
    return build.read_recipe(data, refuse_repeats=False)


def _leave_out_of_training(training: dict[str, Any], cut: Cut, recipe: Recipe) -> None:
    """Encoders that are left out are not trained, nor are adapters put into them."""
    tuned = [name for name in build.tuned_upstreams(recipe) if name in cut.layers]
    if isinstance(training["train_upstream"], dict):
        asked = training["train_upstream"]
        training["train_upstream"] = {n: which for n, which in asked.items() if n in cut.layers}
    if not tuned:
        training["train_upstream"], training["lora"] = "none", None
