"""The two orders in which models and layers can be fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechfuse.alignment import align
from speechfuse.contracts import Fusion, Interface, LayerStream, Merge
from speechfuse.ops import normalise
from speechfuse.types import Frames, LayerStack


class MergeFirst(Fusion):
    """Merge the models layer by layer, then fuse the layers once (Shih & Harwath 2025, sec. 3).

    A merge that makes features wider than any model (concat) is followed by one linear layer
    back to that model's width, after the interface.
    """

    def __init__(
        self, merge: Merge, interface: Interface, *, normalize: str = "none", models: int = 1
    ) -> None:
        """normalize: of every hidden state first: none, layer_norm or unit_rms, nothing learned.

        models: how many are merged; layers of one alone can be streamed.
        """
        super().__init__()
        self.models = models
        self.merge, self.interface, self.normalize = merge, interface, normalize
        width = merge.project_to
        self.project = None if width is None else nn.Linear(interface.out_dim, width)
        self.out_dim = width or interface.out_dim
        self.frame_rate = merge.spec.frame_rate

    def merged(self, stacks: Sequence[LayerStack]) -> LayerStack:
        """The one stack that the interface reads."""
        stack: LayerStack = self.merge(align(_normalised(stacks, self.normalize)))
        return stack

    def forward(self, stacks: Sequence[LayerStack], task: str) -> Frames:
        fused: Frames = self.interface(self.merged(stacks), task)
        if self.project is None:
            return fused
        return Frames(self.project(fused.hidden), fused.lengths, fused.frame_rate)

    def stream(self, task: str) -> LayerStream:
        """Of one encoder, which every merge leaves as it is."""
        if self.models > 1:
            return super().stream(task)
        interface = self.interface.stream(task)
        return _NormalisedStream(interface, self.merge.spec.num_layers, self.normalize)


class _NormalisedStream(LayerStream):
    """Normalises each layer for an interface that takes them one by one."""

    def __init__(self, interface: LayerStream, num_layers: int, kind: str) -> None:
        super().__init__(num_layers)
        self._interface, self._kind = interface, kind

    def add(self, index: int, hidden: Tensor) -> None:
        self._interface.add(index, normalise(hidden, self._kind))

    def frames(self) -> Tensor:
        return self._interface.frames()


class LayersFirst(Fusion):
    """Fuse the layers of each model, then concatenate and project (Chiu et al. 2024, baseline)."""

    def __init__(
        self,
        interfaces: Sequence[Interface],
        frame_rate: float,
        *,
        normalize: str = "none",
        project: bool = True,
    ) -> None:
        """normalize: of every hidden state first: none, layer_norm or unit_rms, nothing learned.

        project: the linear layer to the widest model's width, which starts random. It mixes what a
        head with standard deviations tells apart: with little data, do without it.
        """
        super().__init__()
        widths = [interface.out_dim for interface in interfaces]
        self.interfaces, self.normalize = nn.ModuleList(interfaces), normalize
        project = project and len(widths) > 1
        self.out_dim, self.frame_rate = max(widths) if project else sum(widths), frame_rate
        self.project = nn.Linear(sum(widths), self.out_dim) if project else None

    def forward(self, stacks: Sequence[LayerStack], task: str) -> Frames:
        fused: list[Frames] = [
            interface(stack, task)
            for interface, stack in zip(
                self.interfaces, _normalised(stacks, self.normalize), strict=True
            )
        ]
        if len(fused) == 1:
            return fused[0]
        aligned = align([LayerStack((f.hidden,), f.lengths, f.frame_rate) for f in fused])
        hidden = torch.cat([stack.layers[0] for stack in aligned], dim=-1)
        if self.project is not None:
            hidden = self.project(hidden)
        return Frames(hidden, aligned[0].lengths, aligned[0].frame_rate)


def _normalised(stacks: Sequence[LayerStack], kind: str) -> list[LayerStack]:
    if kind == "none":
        return list(stacks)
    return [
        LayerStack(
            tuple(normalise(layer, kind) for layer in stack.layers), stack.lengths, stack.frame_rate
        )
        for stack in stacks
    ]
