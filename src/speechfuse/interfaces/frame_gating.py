"""A weighted sum whose weights every frame chooses itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.contracts import Interface
from speechfuse.ops import mix
from speechfuse.types import Frames, LayerStack, StackSpec


class FrameGating(Interface):
    """Each layer asks for its own weight in a frame, from what it holds there.

        scores[l, b, t] = logits[l] + gates[l] . stack.layers[l][b, t] / sqrt(D)
        weights = softmax over l of scores                                     (L, B, T)
        hidden[b, t] = sum over l of weights[l, b, t] * stack.layers[l][b, t]

    All zero at the start, which is the plain mean; with gates at zero it is WeightedSum. The
    plainest gate over layers that reads its input, after no single paper: the dynamic layer
    attention of LAP (arXiv:2512.22148) is a richer one.
    """

    def __init__(self, spec: StackSpec, *, tasks: Sequence[str]) -> None:
        super().__init__()
        self.out_dim = spec.dim
        self.logits = nn.Parameter(torch.zeros(spec.num_layers))
        self.gates = nn.Parameter(torch.zeros(spec.num_layers, spec.dim))

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """Those of every frame, (L, B, T)."""
        return {"": self._weights(stack)}

    def _weights(self, stack: LayerStack) -> Tensor:
        gates = self.gates / self.out_dim**0.5  # as in attention, so that wide layers start calmly
        with torch.autocast(gates.device.type, enabled=False):  # it would keep a copy of each layer
            scores = [
                layer @ gate.to(layer.dtype)
                for layer, gate in zip(stack.layers, gates, strict=True)
            ]
        return (self.logits[:, None, None] + torch.stack(scores)).softmax(0)

    def forward(self, stack: LayerStack, task: str) -> Frames:
        weights = self._weights(stack)[..., None]
        return Frames(mix(weights, stack.layers), stack.lengths, stack.frame_rate)
