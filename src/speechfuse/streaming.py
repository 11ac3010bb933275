"""Both orders of fusion at work on layers that encoders make one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechfuse.alignment import common_lengths, neighbours, on_grid
from speechfuse.contracts import FusionStream, LayerStream, Merge
from speechfuse.errors import ShapeError
from speechfuse.ops import normalise
from speechfuse.types import Frames, LayerStack, StackSpec


class Coming(NamedTuple):
    """Whose layers come: their shapes, lengths (B,), and how they are taken."""

    specs: Sequence[StackSpec]
    lengths: Sequence[Tensor]
    normalize: str
    drop_state_0: bool


class _Stream(FusionStream):
    """Looks after what comes, and normalises it."""

    def __init__(self, coming: Coming) -> None:
        specs, self._own_lengths, self._normalize, drop_state_0 = coming
        self._rates = [spec.frame_rate for spec in specs]
        self._awaited = [set(range(spec.num_layers)) for spec in specs]
        self._dropped = [int(drop_state_0 and spec.num_layers > 1) for spec in specs]

    @torch.no_grad()
    def accumulate(self, index: int, hidden: Tensor, model: int = 0) -> None:
        awaited = self._awaited[model]
        if index not in awaited:
            raise ShapeError(
                f"layer {index} of encoder {model} is not awaited, but "
                f"{sorted(awaited) or 'none'}; give every layer once"
            )
        awaited.remove(index)
        if index >= self._dropped[model]:
            self._take(model, index - self._dropped[model], normalise(hidden, self._normalize))

    @torch.no_grad()
    def result(self) -> Frames:
        for model, awaited in enumerate(self._awaited):
            if awaited:
                raise ShapeError(
                    f"layers {sorted(awaited)} of encoder {model} have not come; give every layer "
                    "once"
                )
        return self._finished()

    @abstractmethod
    def _take(self, model: int, index: int, hidden: Tensor) -> None: ...

    @abstractmethod
    def _finished(self) -> Frames: ...


class LayersFirstStream(_Stream):
    """Each encoder's layers go into its own interface, which keeps no layer."""

    def __init__(
        self,
        interfaces: Sequence[LayerStream],
        join: Callable[[Sequence[Frames]], Frames],
        coming: Coming,
    ) -> None:
        """join: merges what is left of the encoders."""
        super().__init__(coming)
        self._interfaces, self._join = interfaces, join

    def _take(self, model: int, index: int, hidden: Tensor) -> None:
        self._interfaces[model].add(index, hidden)

    def _finished(self) -> Frames:
        left = zip(self._interfaces, self._own_lengths, self._rates, strict=True)
        return self._join([Frames(part.frames(), size, rate) for part, size, rate in left])


class MergeFirstStream(_Stream):
    """A merged layer goes into the interface when all that it is made of has come.

    A layer is held until no merged layer needs it any more: one or two of each encoder, if
    encoders go in step; all of the first, if they come one after another.
    """

    def __init__(
        self,
        merge: Merge,
        interface: LayerStream,
        finish: Callable[[Frames], Frames],
        coming: Coming,
    ) -> None:
        """finish: what follows the interface."""
        super().__init__(coming)
        self._merge, self._interface, self._finish = merge, interface, finish
        self._rate = max(self._rates)
        self._lengths = common_lengths(self._own_lengths, self._rates)
        self._frames = int(self._lengths.max())
        self._counts = [len(n) - k for n, k in zip(self._awaited, self._dropped, strict=True)]
        self._held: list[dict[int, Tensor]] = [{} for _ in coming.specs]
        self._next = 0  # merged layer

    def _take(self, model: int, index: int, hidden: Tensor) -> None:
        if len(self._held) > 1:
            own = LayerStack((hidden,), self._own_lengths[model], self._rates[model])
            (hidden,) = on_grid(own, self._rate, self._lengths, self._frames)
        self._held[model][index] = hidden
        while self._next < max(self._counts) and self._merge_next():
            self._next += 1

    def _merge_next(self) -> bool:
        """Merge the next layer and forget what is below it; False if something is missing."""
        parts = []
        for held, count in zip(self._held, self._counts, strict=True):
            low, high, share = neighbours(self._next, count, max(self._counts))
            for below in [index for index in held if index < low]:
                del held[below]
            if low not in held or high not in held:
                return False
            layer = held[low] if low == high else torch.lerp(held[low], held[high], share)
            parts.append(LayerStack((layer,), self._lengths, self._rate))
        merged: LayerStack = self._merge(parts)
        self._interface.add(self._next, merged.layers[0])
        self._merged = merged.lengths, merged.frame_rate
        return True

    def _finished(self) -> Frames:
        return self._finish(Frames(self._interface.frames(), *self._merged))
