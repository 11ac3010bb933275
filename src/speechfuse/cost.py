"""What every interface costs on a recipe's encoders: parameters, products, seconds, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechfuse import build, catalog
from speechfuse.errors import SpeechFuseError
from speechfuse.fusion import fit_interfaces
from speechfuse.measure import median_seconds, peak_bytes
from speechfuse.plan import count_products
from speechfuse.recipe import Part, Recipe
from speechfuse.types import Frames, LayerStack, StackSpec, Table


@dataclass(frozen=True)
class Cost:
    """One interface under the recipe's merge and order."""

    interface: str
    parameters: int
    macs: float  # multiply-adds for a second of audio
    forward: float  # seconds for a second of audio
    training: float  # seconds of forward and backward for a second of audio
    memory: int  # bytes held at most by a forward pass over the audio, beside the layers


def cost_table(
    recipe: Recipe, own: Sequence[str] = (), *, seconds: float = 10.0, repeats: int = 5
) -> Table:
    """The encoders, then what `interface_costs` measures, for reading."""
    rows = []
    for name in recipe.upstreams:
        planned = build.build_upstream(recipe, name).plan
        macs = f"{planned.macs_per_second / 1e9:.3f} G"
        rows.append([f"encoder {name}", f"{planned.parameters:,}", macs, "", "", ""])
    for found in interface_costs(recipe, own, seconds=seconds, repeats=repeats):
        if not isinstance(found, Cost):
            kind, reason = found
            rows.append([kind, f"cannot be built: {reason}", "", "", "", ""])
            continue
        times = [f"{1000 * t:.2f}" for t in (found.forward, found.training)]
        cells = [f"{found.parameters:,}", f"{found.macs / 1e9:.4f} G", *times]
        rows.append([found.interface, *cells, f"{found.memory / 1e6:.1f}"])
    columns = ["", "parameters", "multiply-adds", "ms", "ms with backward", "MB"]
    return f"For a second of audio; MB of a pass over {seconds:g} s", columns, rows


def interface_costs(
    recipe: Recipe, own: Sequence[str] = (), *, seconds: float = 10.0, repeats: int = 5
) -> list[Cost | tuple[str, str]]:
    """Every interface of the catalog with its default options, and one's own by module:Class.

    seconds: of audio in a pass. One that cannot read these encoders stands with the reason.
    """
    specs = build.stack_specs(recipe)
    torch.manual_seed(0)
    stacks = [_stack(spec, seconds) for spec in specs]
    found: list[Cost | tuple[str, str]] = []
    for kind in [*catalog.ROLES["interface"], *own]:
        chosen = recipe.fusion.model_copy(update={"interface": _part(recipe, kind)})
        try:
            cost = _cost(recipe.model_copy(update={"fusion": chosen}), kind, specs, stacks, repeats)
        except SpeechFuseError as error:
            found.append((kind, str(error)))
        else:
            found.append(cost)
    return found


def _part(recipe: Recipe, kind: str) -> Part:
    """The recipe's own interface as it is configured, others with their defaults."""
    same = recipe.fusion.interface.kind == kind
    return recipe.fusion.interface if same else Part(kind=kind)


def _stack(spec: StackSpec, seconds: float) -> LayerStack:
    frames = max(1, round(seconds * spec.frame_rate))
    layers = tuple(torch.randn(spec.num_layers, 1, frames, spec.dim))
    return LayerStack(layers, torch.tensor([frames]), spec.frame_rate)


def _cost(
    recipe: Recipe,
    kind: str,
    specs: Sequence[StackSpec],
    stacks: Sequence[LayerStack],
    repeats: int,
) -> Cost:
    task = next(iter(recipe.tasks))
    fusion = build.build_fusion(recipe, specs, [task])
    fit_interfaces(fusion, lambda: [stacks])
    seconds = float(stacks[0].lengths[0]) / stacks[0].frame_rate

    def forward() -> Tensor:
        with torch.no_grad():
            frames: Frames = fusion(stacks, task)
        return frames.hidden

    def training() -> None:
        fusion.zero_grad(set_to_none=True)
        frames: Frames = fusion(stacks, task)
        if frames.hidden.requires_grad:
            frames.hidden.sum().backward()

    taken = median_seconds({"forward": forward, "training": training}, repeats)
    return Cost(
        kind,
        sum(p.numel() for p in fusion.parameters()),
        count_products(forward) / seconds,
        taken["forward"] / seconds,
        taken["training"] / seconds,
        peak_bytes(forward),
    )
