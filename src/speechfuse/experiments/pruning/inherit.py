"""What a pruned model takes over of the one that was trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from speechfuse.experiments.pruning.cuts import Cut, Encoder
from speechfuse.recipe import Recipe

Blocks = Sequence[tuple[int, bool]]  # of one axis: how wide each is, and whether it is kept


class Inheritance:
    """Which weight of a trained model is which one of the pruned model.

    A weight is found by its name, numbers of encoders changed. Along an axis that has become
    shorter the features of encoders and the layers that are left are taken: of the logits of a
    weighted sum the lowest, which a softmax makes sum to one again. Where the shapes do not fit in
    this way the weight starts anew.
    """

    def __init__(
        self, recipe: Recipe, encoders: Mapping[str, Encoder], cut: Cut, tuned: Sequence[str]
    ) -> None:
        """recipe: of the trained model. tuned: its encoders that are trained."""
        kept = [*cut.layers]
        before = {name: len(encoder.layers) for name, encoder in encoders.items()}
        after = {name: len(layers) for name, layers in cut.layers.items()}
        self._own = [(before[name], after[name]) for name in kept]  # of each encoder's interface
        self._merged = max(before.values()), max(after.values())
        self._layers_first = recipe.fusion.order == "layers_first"
        self._widths = [(e.plan.spec.dim, name in cut.layers) for name, e in encoders.items()]
        places, trained = [*encoders], [name for name in tuned if name in cut.layers]
        self._numbers = [places.index(name) for name in kept]
        self._tuned_numbers = [tuned.index(name) for name in trained]
        self._by_encoder = recipe.fusion.merge.kind != "concat"

    def take(self, model: nn.Module, trained: Mapping[str, Tensor]) -> list[str]:
        """Put what fits of a trained model's weights into a pruned one; names that start anew."""
        state, anew = model.state_dict(), []
        for name, tensor in state.items():
            old = trained.get(self._old_name(name))
            fitting = None if old is None else self._fitting(name, old, tensor.shape)
            if fitting is None:
                anew.append(name)
            else:
                state[name] = fitting.to(tensor.dtype)
        model.load_state_dict(state)
        return anew

    def _old_name(self, name: str) -> str:
        def renumber(match: re.Match[str]) -> str:
            number = int(match[2])
            return f"{match[1]}{numbers[number] if number < len(numbers) else number}."

        numbers = self._tuned_numbers
        name = re.sub(r"^(upstreams\.)(\d+)\.", renumber, name)
        numbers = self._numbers
        parts = r"interfaces|merge\.projections" if self._by_encoder else "interfaces"
        return re.sub(rf"^(fusions\.[^.]+\.(?:{parts})\.)(\d+)\.", renumber, name)

    def _fitting(self, name: str, old: Tensor, shape: torch.Size) -> Tensor | None:
        if old.dim() != len(shape):
            return None
        for axis, size in enumerate(shape):
            if old.shape[axis] == size:
                continue
            rows = self._rows(name, old.shape[axis], size)
            if rows is None:
                return None
            old = old.index_select(axis, rows)
        return old

    def _rows(self, name: str, before: int, after: int) -> Tensor | None:
        """Places along an axis that are kept."""
        layers = self._layers_of(name)
        each = max(1, before // len(layers))  # features of a layer that lie side by side
        by_layer = [(each * size, keep) for size, keep in layers]
        by_model = [(1, keep) for _, keep in self._widths]
        for blocks in (self._widths, by_layer, by_model):
            rows = torch.cat([torch.full((size,), keep) for size, keep in blocks])
            if len(rows) == before and int(rows.sum()) == after:
                return rows.nonzero()[:, 0]
        return None

    def _layers_of(self, name: str) -> Blocks:
        found = re.match(r"fusions\.[^.]+\.interfaces\.(\d+)\.", name)
        before, after = self._own[int(found[1])] if found else self._merged
        return [(1, layer < after) for layer in range(before)]
