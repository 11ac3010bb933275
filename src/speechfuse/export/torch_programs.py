"""Programs of torch.export as .pt2 files: weights as plain bytes, the graph as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save(program: Any, path: Path) -> None:
    """Without the example that it was traced with, which torch would pickle, and without the lines
    of source that every node comes from.
    """
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
