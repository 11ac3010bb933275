"""One linear layer over all layers side by side (Shih & Harwath 2024, sec. 3, arXiv:2406.12209)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from speechfuse.contracts import Interface
from speechfuse.layer_linear import layer_linear
from speechfuse.types import Frames, LayerStack, StackSpec


class ConcatProject(Interface):
    """hidden = W [stack.layers[0], ..., stack.layers[L - 1]] + bias.

    Starts as `nn.Linear` does. Computed as a sum of L products, so the layers are never copied.
    """

    linear = True

    def __init__(
        self, spec: StackSpec, *, tasks: Sequence[str], out_dim: int | None = None
    ) -> None:
        """out_dim: width of the output, that of the layers if left out."""
        super().__init__()
        self.out_dim = out_dim or spec.dim
        self.project = nn.Linear(spec.num_layers * spec.dim, self.out_dim)

    def forward(self, stack: LayerStack, task: str) -> Frames:
        hidden = layer_linear(stack.layers, self.project)
        return Frames(hidden, stack.lengths, stack.frame_rate)
