"""Which graphs a run becomes, and what they are followed through with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speechfuse.export.graph import example
from speechfuse.export.loading import Source
from speechfuse.export.onnx_graphs import Dims


@dataclass(frozen=True)
class GraphPlan:
    """A graph to be written."""

    name: str  # of its file, without the ending
    module: nn.Module
    example: tuple[Tensor, ...]
    dims: Dims  # axes of each input that are free
    inputs: Sequence[str]
    outputs: Sequence[str]


def graph_plans(source: Source) -> list[GraphPlan]:
    """The model, and a decoder for each task that writes; its example is what the model gives."""
    given = example(source.min_samples, [*source.prompts.values()])
    dims: list[Any] = [{0: "batch", 1: "samples"}, {0: "batch"}]
    if source.prompts:
        dims.append([{0: "words"} for _ in source.prompts])
    plans = [GraphPlan("model", source.graph, given, dims, source.graph.inputs, source.graph.names)]
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
