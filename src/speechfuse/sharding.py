"""Fully sharded data parallel training (Zhao et al. 2023, arXiv:2304.11277), through Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import FSDPStrategy
from torch.nn import Module


class Sharded(FSDPStrategy):
    """Each process keeps a part of what is trained, of its gradients and of Adam's moments.

    All trained weights are one unit: they are whole within a step, for a part's methods may be
    called apart from its `forward`, and a part of themselves between two steps. What rests is whole
    on every device. Checkpoints are whole, so that another number of processes, or one alone, goes
    on.
    """

    def _setup_model(self, model: Module) -> Module:
        model = model.to(self.root_device)
        resting = [p for p in model.parameters() if not p.requires_grad]
        options: dict[str, Any] = {"ignored_states": resting, "sync_module_states": True}
        self.kwargs |= options
        return super()._setup_model(model)
