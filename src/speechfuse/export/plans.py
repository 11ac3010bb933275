"""Which graphs a run becomes, and what they are followed through with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechfuse.export.graph import INPUTS, example
from speechfuse.export.loading import Source


@dataclass(frozen=True)
class GraphPlan:
    """A graph to be written."""

    name: str  # of its file, without the ending
    module: nn.Module
    example: tuple[Tensor, ...]
    dims: Sequence[Mapping[int, str]]  # axes of each input that are free
    inputs: Sequence[str]
    outputs: Sequence[str]


def graph_plans(source: Source) -> list[GraphPlan]:
    """The model, and a decoder for each task that writes; its example is what the model gives."""
    given = example(source.min_samples)
    dims = ({0: "batch", 1: "samples"}, {0: "batch"})
    plans = [GraphPlan("model", source.graph, given, dims, INPUTS, source.graph.names)]
    decoders = source.graph.decoders()
    if not decoders:
        return plans
    with torch.no_grad():
        found = dict(zip(source.graph.names, source.graph(*given), strict=True))
    for task, decoder in decoders.items():
        inputs = {
            "tokens": found[f"{task}.logits"].argmax(-1),
            "valid": found[f"{task}.valid"],
            "cache": found[f"{task}.cache"],
        }
        free = [{0: "batch"}, {0: "batch", 1: "past"}, {2: "batch", 4: "past"}]
        if f"{task}.heard" in found:
            inputs["heard"] = found[f"{task}.heard"]
            free.append({1: "batch"})
        values, outputs = tuple(inputs.values()), ("logits", "cache_out")
        plans.append(GraphPlan(f"decoder-{task}", decoder, values, free, [*inputs], outputs))
    return plans
