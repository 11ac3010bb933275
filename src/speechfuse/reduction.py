"""Store less than every layer of every encoder, where what is learned stays the same.

    encoder ─ layers ┐                        merged                mean
    encoder ─ layers ┼─ normalise ─ align ─ merge ─ mean over time ─ interface ─ head's own mean
    encoder ─ layers ┘        nothing learned     │                 linear, the same in every frame

A linear map and a mean over time may change places, so a head that reads nothing but the mean over
frames is told the same, and so is what it learns from. Numbers differ by rounding alone: the sum,
or the mean, is rounded once to the stored type, and not each layer of each frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from speechfuse import catalog
from speechfuse.contracts import Merge, Upstream, UpstreamPlan
from speechfuse.errors import RecipeError
from speechfuse.fusion import merged_stack
from speechfuse.ops import masked_mean
from speechfuse.recipe import Recipe, TaskRecipe
from speechfuse.types import LayerStack, Waveforms


class Reduced(Upstream):
    """Frozen upstreams as one: their merged stack, or its mean over time (T = 1)."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        merge: Merge,
        *,
        normalize: str = "none",
        drop_state_0: bool = False,
        mean: bool = False,
    ) -> None:
        """merge: that learns nothing. normalize: of every hidden state first, as fusion.normalize.

        drop_state_0: before the merge, so that the others of models of different depth meet.
        mean: over time, of every layer.
        """
        super().__init__()
        self.upstreams = nn.ModuleList(upstreams)
        self.merge, self.normalize, self.drop_state_0 = merge, normalize, drop_state_0
        self.pools, self.sample_rate = mean, upstreams[0].sample_rate
        plans = [one.plan for one in upstreams]
        self.plan = UpstreamPlan(
            merge.spec,
            sum(plan.parameters for plan in plans),
            sum(plan.macs_per_second for plan in plans),
            max(plan.min_samples for plan in plans),
            max(plan.silence for plan in plans),
        )

    def members(self) -> list[Upstream]:
        return [one for one in self.upstreams if isinstance(one, Upstream)]

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers that all upstreams have in common, or those of the merged stack."""
        alike = {one.layers for one in self.members()}
        return alike.pop() if len(alike) == 1 else tuple(range(self.plan.spec.num_layers))

    def load(self) -> None:
        for one in self.members():
            one.load()

    def forward(self, wav: Waveforms) -> LayerStack:
        lengths, layers = self.stream(wav)
        return LayerStack(tuple(layers), lengths, self.plan.spec.frame_rate)

    def stream(self, wav: Waveforms) -> tuple[Tensor, Iterable[Tensor]]:
        """One depth after the other, if all upstreams are of one depth."""
        stacks = self._merged(wav)
        first = next(stacks)
        layers = (
            masked_mean(layer, stack.lengths)[:, None] if self.pools else layer
            for stack in chain([first], stacks)
            for layer in stack.layers
        )
        return torch.ones_like(first.lengths) if self.pools else first.lengths, layers

    def _merged(self, wav: Waveforms) -> Iterator[LayerStack]:
        """The merged stack, whole or a layer at a time."""
        upstreams = self.members()
        if len({one.plan.spec.num_layers for one in upstreams}) > 1:
            yield self._merge([one(wav) for one in upstreams])
            return
        lengths, states = zip(*(one.stream(wav) for one in upstreams), strict=True)
        rates = [one.plan.spec.frame_rate for one in upstreams]
        for same_depth in zip(*states, strict=True):
            found = zip(same_depth, lengths, rates, strict=True)
            yield self._merge([LayerStack((layer,), size, rate) for layer, size, rate in found])

    def _merge(self, stacks: Sequence[LayerStack]) -> LayerStack:
        return merged_stack(stacks, self.merge, self.normalize, drop_state_0=self.drop_state_0)

    def identity(self) -> dict[str, str]:
        return {
            f"{number}.{key}": value
            for number, one in enumerate(self.members())
            for key, value in one.identity().items()
        }

    def manner(self) -> Mapping[str, Any]:
        """What is made of the upstreams' layers; the merge's kind and options are not known here.

        Which layers they have counts where those of one depth have different numbers.
        """
        numbers = [one.layers for one in self.members()]
        return {
            "normalize": self.normalize,
            "drop_state_0": self.drop_state_0,
            "mean": self.pools,
            **({"layers": numbers} if len(set(numbers)) > 1 else {}),
        }


def reduction(recipe: Recipe) -> str:
    """What is stored: none, merged or mean; of one encoder there is nothing to merge."""
    asked = recipe.store.reduce
    return "none" if asked == "merged" and len(recipe.upstreams) == 1 else asked


def with_reduction(recipe: Recipe, kind: str) -> Recipe:
    """The same run with something else stored; none for whoever has all layers at hand."""
    store = recipe.store.model_copy(update={"reduce": kind})
    return recipe.model_copy(update={"store": store})


def refuse_inexact(recipe: Recipe, tuned: Collection[str]) -> None:
    """tuned: upstreams that are trained.

    Raises:
        RecipeError: all why what is stored smaller would not be the same to what is learned.
    """
    start, end = f"store.reduce={recipe.store.reduce}: ", "; or set store.reduce to none"
    if lines := [f"{start}{why}{end}" for why in why_inexact(recipe, tuned)]:
        raise RecipeError("\n".join(lines))


def why_inexact(recipe: Recipe, tuned: Collection[str]) -> Iterator[str]:
    """Each part that stands against it, and what to do."""
    kind = reduction(recipe)
    if kind == "none":
        return
    fusion = recipe.fusion
    for name in tuned:
        yield f"upstream '{name}' is trained, its layers change and are not stored; freeze it"
    if fusion.order != "merge_first":
        yield (
            f"order '{fusion.order}' fuses the layers of each encoder by themselves, a merged "
            "stack is never read; use order merge_first"
        )
    merge = fusion.merge
    if len(recipe.upstreams) > 1 and not catalog.find("merge", merge.kind).is_fixed(merge.options):
        yield (
            f"merge '{merge.kind}' learns with these options, so what it gives changes; use add "
            "with width refuse or interpolate, interleave, or concat with its projection after, "
            "inside or none"
        )
    if kind == "mean":
        yield from _why_no_mean(recipe)


def refuse_crops(recipe: Recipe, rates: Sequence[float], merged: float) -> None:
    """rates: of the upstreams' frames in Hz. merged: of their merged stack's.

    Raises:
        RecipeError: crops would begin and end elsewhere than in each upstream's own frames.
    """
    cropped = [name for name, entry in recipe.tasks.items() if entry.crop_seconds]
    if cropped and {*rates} != {merged}:
        found = ", ".join(f"{rate:g}" for rate in rates)
        raise RecipeError(
            f"store.reduce=merged: task '{cropped[0]}': crop_seconds cuts the frames of each "
            f"encoder, at {found} Hz, before they are merged to {merged:g} Hz; leave it out, use "
            "encoders of one rate, or set store.reduce to none"
        )


def _why_no_mean(recipe: Recipe) -> Iterator[str]:
    interface = recipe.fusion.interface.kind
    if not catalog.find("interface", interface).linear:
        able = [name for name, cls in catalog.ROLES["interface"].items() if cls.linear]
        yield (
            f"interface '{interface}' needs every frame, it is not linear or not the same in each "
            f"(Interface.linear); use {', '.join(able[:-1])} or {able[-1]}, or reduce: merged"
        )
    if recipe.context is not None:
        yield f"context '{recipe.context.kind}' reads every frame; leave it out, or reduce: merged"
    if recipe.store.dtype == "int8":
        yield "int8 keeps a scale beside each value of a mean, five bytes for two; use float16"
    for name, entry in recipe.tasks.items():
        for what in _reads_frames(entry):
            yield f"task '{name}': {what}, or give it a recipe of its own"


def _reads_frames(entry: TaskRecipe) -> Iterator[str]:
    """What of a task needs more than the mean over time."""
    head = entry.head
    if not catalog.find("head", head.kind).reads_mean(head.options):
        yield (
            f"head '{head.kind}' with these options reads more of the frames than their mean over "
            "time; use one that does not, like classifier without mean_std and hidden"
        )
    if entry.crop_seconds:
        yield "crop_seconds reads another stretch each time, whose mean is another; leave it out"
    if entry.augment and entry.augment.masks:
        yield "augment changes single frames; leave its masks and time_warp out"
    if entry.utterance_norm != "none":
        yield f"utterance_norm {entry.utterance_norm} takes the mean away; leave it out"
