"""One chosen layer, nothing learned: what the best layer alone would give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from speechfuse.contracts import Interface, LayerStream
from speechfuse.errors import ShapeError
from speechfuse.types import Frames, LayerStack, StackSpec


class SingleLayer(Interface):
    """hidden = stack.layers[layer]."""

    linear = True

    def __init__(self, spec: StackSpec, *, tasks: Sequence[str], layer: int = -1) -> None:
        """layer: index of the hidden state, 0 is what the first block reads, -1 the last.

        Raises:
            ShapeError: there is no such layer.
        """
        super().__init__()
        if not -spec.num_layers <= layer < spec.num_layers:
            raise ShapeError(
                f"single_layer: layer {layer} asked for, the stack has {spec.num_layers} "
                f"(0 to {spec.num_layers - 1}, or negative from the end)"
            )
        self.layer = layer % spec.num_layers
        self.out_dim = spec.dim

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """One at the chosen layer, (L,)."""
        index = torch.tensor(self.layer, device=stack.lengths.device)
        return {"": F.one_hot(index, len(stack.layers)).float()}

    def forward(self, stack: LayerStack, task: str) -> Frames:
        return Frames(stack.layers[self.layer], stack.lengths, stack.frame_rate)

    def stream(self, task: str) -> LayerStream:
        return _SingleLayerStream(self.layer)


class _SingleLayerStream(LayerStream):
    def __init__(self, layer: int) -> None:
        self._layer = layer

    def add(self, index: int, hidden: Tensor) -> None:
        if index == self._layer:
            self._chosen = hidden

    def frames(self) -> Tensor:
        return self._chosen
