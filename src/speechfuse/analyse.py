"""How much each layer of each model counts for each task.

Three answers, because mixing weights mislead where layers differ in size, and some methods have
none:

* the interface's own weights, and weights times the root mean square of the layer as the
  interface reads it;
* the gradient of what the interface gives to each layer that it reads, for each block of features;
* ablation: the rise of the loss when one layer of one model is replaced by its mean over time,
  so that nothing can be read from it, on training utterances (verification has no loss on
  unknown speakers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechfuse.contracts import Interface, ShowsLayers
from speechfuse.inputs import Inputs
from speechfuse.model import FusionModel
from speechfuse.ops import length_mask, masked_mean
from speechfuse.receptive import receptive_field
from speechfuse.taskdata import TaskData
from speechfuse.types import LayerStack, Tokens

SAMPLE = 24  # training utterances looked at
CONTEXT = "prompted transformer"


@dataclass(frozen=True)
class LayerUse:
    """One task's use of the layers of one model, or of the merged stack."""

    task: str
    model: str
    weights: list[float] | None  # the interface's own, if it has any
    scaled: list[float] | None  # weights times the layer's size, made to sum to one
    ablation: list[float] | None  # rise of the loss without each layer
    gradient: list[list[float]] | None = None  # share of each layer, for each block of features
    layers: Sequence[int] | None = None  # their numbers; None counts from 0

    def numbered(self, values: Sequence[float]) -> dict[int, float]:
        """Values of layers, by the layers' numbers."""
        return dict(zip(self.layers or range(len(values)), values, strict=True))


@torch.no_grad()
def layer_use(
    model: FusionModel,
    tasks: Mapping[str, TaskData],
    inputs: Mapping[str, Sequence[Inputs]],
    upstreams: Mapping[str, Sequence[int]],
) -> list[LayerUse]:
    """Every task's use of every layer.

    upstreams: the numbers of the layers of each, by name, in recipe order.
    """
    model.eval()
    found: list[LayerUse] = []
    for name, data in tasks.items():
        members = data.splits["train"]
        sample = members[:: max(1, len(members) // SAMPLE)][:SAMPLE]
        stacks = model.stacks([one.batch(sample) for one in inputs[name]])
        targets = data.task.targets(sample)
        found += _readings(model, name, stacks, upstreams)
        if model.reader is not None:
            found += _uses(name, CONTEXT, *model.context_reading(stacks, name, targets))
        found += _ablations(model, name, stacks, upstreams, targets)
    return found


def _readings(
    model: FusionModel,
    task: str,
    stacks: Sequence[LayerStack],
    upstreams: Mapping[str, Sequence[int]],
) -> list[LayerUse]:
    """One entry for each stack that an interface reads: gradients, and weights if it has any.

    A model that the merge weighs has its weight before its name.
    """
    fusion = model.fusion_of(task)
    read = fusion.readings(stacks)
    names, numbers = list(upstreams), list(upstreams.values())
    by_model = fusion.merge.model_weights()
    if by_model is not None:
        names = [f"{share:.2f} {n}" for share, n in zip(by_model.tolist(), names, strict=True)]
    if len(read) < len(names):
        names = [" + ".join(names)]
        numbers = numbers[:1] if len({*map(tuple, numbers)}) == 1 else [()]
    return [
        replace(use, layers=layers if len(layers) == len(stack.layers) else None)
        for name, layers, (interface, stack) in zip(names, numbers, read, strict=True)
        for use in _uses(task, name, interface, stack)
    ]


def _uses(task: str, name: str, interface: Interface, stack: LayerStack) -> list[LayerUse]:
    """What one interface makes of the stack that it reads."""
    gradient = receptive_field(interface, stack, task).tolist()
    found = [LayerUse(task, name, None, None, None, gradient)]
    if not isinstance(interface, ShowsLayers):
        return found
    for kind, given in interface.layer_weights(stack, task).items():
        weights = _mean_weights(given, stack)
        scaled = weights * _sizes(stack)
        shares = (scaled / scaled.sum()).tolist()
        if kind:
            found.append(LayerUse(task, f"{name}, {kind}", weights.tolist(), shares, None))
        else:
            found[-1] = replace(found[-1], weights=weights.tolist(), scaled=shares)
    return found


def _ablations(
    model: FusionModel,
    task: str,
    stacks: Sequence[LayerStack],
    upstreams: Mapping[str, Sequence[int]],
    targets: Tokens,
) -> list[LayerUse]:
    def loss(changed: Sequence[LayerStack]) -> float:
        value = model.loss(changed, task, targets)
        return float(value.total) / (value.count or 1)

    whole = loss(stacks)
    found = []
    for index, ((name, numbers), stack) in enumerate(zip(upstreams.items(), stacks, strict=True)):
        rises = []
        for layer in range(len(stack.layers)):
            changed = [*stacks]
            changed[index] = _without(stack, layer)
            rises.append(loss(changed) - whole)
        found.append(LayerUse(task, name, None, None, rises, layers=numbers))
    return found


def _without(stack: LayerStack, layer: int) -> LayerStack:
    """The stack with one layer replaced by its mean over all valid frames."""
    hidden = stack.layers[layer]
    counts = stack.lengths[:, None].to(hidden.dtype)
    mean = (masked_mean(hidden, stack.lengths) * counts).sum(0) / counts.sum()
    layers = list(stack.layers)
    layers[layer] = mean.expand_as(hidden).contiguous()
    return replace(stack, layers=tuple(layers))


def _mean_weights(weights: Tensor, stack: LayerStack) -> Tensor:
    """Weights of each frame averaged over the valid ones: (L,) or (L, B, T) -> (L,)."""
    if weights.dim() == 1:
        return weights
    mask = length_mask(stack.lengths, weights.shape[2])
    return (weights * mask).sum((1, 2)) / mask.sum()


def _sizes(stack: LayerStack) -> Tensor:
    """Root mean square of each layer over valid frames, (L,)."""
    squares = [masked_mean(layer.square(), stack.lengths).mean() for layer in stack.layers]
    return torch.stack(squares).sqrt()
