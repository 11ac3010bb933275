"""The two orders in which models and layers can be fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn

from speechfuse.alignment import align
from speechfuse.contracts import Fitted, Fusion, FusionStream, Interface, Merge
from speechfuse.errors import ShapeError
from speechfuse.ops import mix, normalise
from speechfuse.streaming import Coming, LayersFirstStream, MergeFirstStream
from speechfuse.types import Frames, LayerStack, StackSpec


class MergeFirst(Fusion):
    """Merge the models layer by layer, then fuse the layers once (Shih & Harwath 2025, sec. 3).

    A merge that makes features wider than any model (concat) is followed by one linear layer
    back to that model's width, after the interface.
    """

    def __init__(
        self,
        merge: Merge,
        interface: Interface,
        *,
        normalize: str = "none",
        drop_state_0: bool = False,
        reads_merged: bool = False,
    ) -> None:
        """normalize: of every hidden state first: none, layer_norm or unit_rms, nothing learned.

        drop_state_0: what the first block of an encoder reads is no layer. reads_merged: it is
        given one stack, which was normalised and merged before it was stored.
        """
        super().__init__()
        self.reads_merged, self.drop_state_0 = reads_merged, drop_state_0
        self.merge, self.interface, self.normalize = merge, interface, normalize
        width = merge.project_to
        self.project = None if width is None else nn.Linear(interface.out_dim, width)
        self.out_dim = width or interface.out_dim
        self.frame_rate = merge.spec.frame_rate

    def merged(self, stacks: Sequence[LayerStack]) -> LayerStack:
        """The one stack that the interface reads."""
        if self.reads_merged:
            (stack,) = stacks
            layers = stack.layers[-self.merge.spec.num_layers :]  # it may still have state 0
            return LayerStack(layers, stack.lengths, stack.frame_rate)
        return merged_stack(stacks, self.merge, self.normalize, drop_state_0=self.drop_state_0)

    def readings(self, stacks: Sequence[LayerStack]) -> list[tuple[Interface, LayerStack]]:
        return [(self.interface, self.merged(stacks))]

    def forward(self, stacks: Sequence[LayerStack], task: str) -> Frames:
        return self._projected(self._fused(stacks, task))

    def _projected(self, fused: Frames) -> Frames:
        if self.project is None:
            return fused
        return Frames(self.project(fused.hidden), fused.lengths, fused.frame_rate)

    def _fused(self, stacks: Sequence[LayerStack], task: str) -> Frames:
        """What the interface gives; a weighted sum of sums is a sum of weighted sums."""
        weights = self.interface.mixture(task) if self.merge.sums and len(stacks) > 1 else None
        if weights is None:
            fused: Frames = self.interface(self.merged(stacks), task)
            return fused
        aligned = align(_normalised(_layers(stacks, self.drop_state_0), self.normalize))
        first, *others = (mix(weights, stack.layers) for stack in aligned)
        return Frames(sum(others, first), aligned[0].lengths, aligned[0].frame_rate)

    def stream(
        self, task: str, specs: Sequence[StackSpec], lengths: Sequence[Tensor]
    ) -> FusionStream:
        assert not self.reads_merged, "stored layers are all there"
        if not self.merge.alike:
            raise ShapeError(
                f"merge {type(self.merge).__name__} does not do the same to every layer, so that "
                "they cannot come one by one; give it the whole stacks"
            )
        coming = Coming(specs, lengths, self.normalize, self.drop_state_0)
        interface = self.interface.stream(task)
        return MergeFirstStream(self.merge, interface, self._projected, coming)


def merged_stack(
    stacks: Sequence[LayerStack], merge: Merge, normalize: str, *, drop_state_0: bool
) -> LayerStack:
    """Stacks of several models as one: normalised, aligned and merged."""
    merged: LayerStack = merge(align(_normalised(_layers(stacks, drop_state_0), normalize)))
    return merged


class LayersFirst(Fusion):
    """Fuse the layers of each model, then merge what is left of the models (Chiu et al. 2024).

    The merge reads stacks of one layer. Concat with its projection is the baseline of Shih &
    Harwath 2025, interleaving in time the best of Chiu et al.
    """

    def __init__(
        self,
        interfaces: Sequence[Interface],
        merge: Merge,
        *,
        normalize: str = "none",
        drop_state_0: bool = False,
    ) -> None:
        """normalize: of every hidden state first: none, layer_norm or unit_rms, nothing learned.

        drop_state_0: what the first block of an encoder reads is no layer.
        """
        super().__init__()
        self.drop_state_0 = drop_state_0
        self.interfaces, self.merge = nn.ModuleList(interfaces), merge
        self.normalize = normalize
        width = merge.project_to
        self.project = None if width is None else nn.Linear(merge.spec.dim, width)
        self.out_dim = width or merge.spec.dim
        self.frame_rate = merge.spec.frame_rate

    def readings(self, stacks: Sequence[LayerStack]) -> list[tuple[Interface, LayerStack]]:
        given = _normalised(_layers(stacks, self.drop_state_0), self.normalize)
        read = zip(self.interfaces, given, strict=True)
        return [(part, stack) for part, stack in read if isinstance(part, Interface)]

    def forward(self, stacks: Sequence[LayerStack], task: str) -> Frames:
        return self._joined([part(stack, task) for part, stack in self.readings(stacks)])

    def _joined(self, fused: Sequence[Frames]) -> Frames:
        """What is left of each model, merged."""
        aligned = align([LayerStack((f.hidden,), f.lengths, f.frame_rate) for f in fused])
        merged: LayerStack = self.merge(aligned)
        hidden = merged.layers[0]
        if self.project is not None:
            hidden = self.project(hidden)
        return Frames(hidden, merged.lengths, merged.frame_rate)

    def stream(
        self, task: str, specs: Sequence[StackSpec], lengths: Sequence[Tensor]
    ) -> FusionStream:
        parts = [part.stream(task) for part in self.interfaces if isinstance(part, Interface)]
        coming = Coming(specs, lengths, self.normalize, self.drop_state_0)
        return LayersFirstStream(parts, self._joined, coming)


def fit_interfaces(fusion: Fusion, batches: Callable[[], Iterable[Sequence[LayerStack]]]) -> None:
    """Fit the interfaces that are fitted to data: one pass over the batches for each."""

    def read(index: int) -> Iterator[LayerStack]:
        for stacks in batches():
            yield fusion.readings(stacks)[index][1]

    for index, part in enumerate(m for m in fusion.modules() if isinstance(m, Interface)):
        if isinstance(part, Fitted):
            part.fit(read(index))


def _layers(stacks: Sequence[LayerStack], drop: bool) -> list[LayerStack]:
    """Without state 0 of those that have more than one, if it is dropped."""
    return [
        LayerStack(s.layers[1:], s.lengths, s.frame_rate) if drop and len(s.layers) > 1 else s
        for s in stacks
    ]


def _normalised(stacks: Sequence[LayerStack], kind: str) -> list[LayerStack]:
    if kind == "none":
        return list(stacks)
    return [
        LayerStack(
            tuple(normalise(layer, kind) for layer in stack.layers), stack.lengths, stack.frame_rate
        )
        for stack in stacks
    ]
