"""Fully sharded data parallel training (Zhao et al. 2023, arXiv:2304.11277), through Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)
from torch.nn import Module
from torch.optim import Optimizer


class Sharded(FSDPStrategy):
    """Each process keeps a part of what is trained, of its gradients and of Adam's moments.

    All trained weights are one unit: they are whole within a step, for a part's methods may be
    called apart from its `forward`, and a part of themselves between two steps. What rests is whole
    on every device. Checkpoints are whole, so that another number of processes, or one alone, goes
    on.
    """

    def _setup_model(self, model: Module) -> Module:
        """Lightning would shard what rests, too."""
        device, precision = self.root_device, self.precision_plugin
        setattr(precision, "convert_input", lambda batch: batch)  # noqa: B010 (our frozen classes)
        model = model.to(device)
        return FullyShardedDataParallel(
            model,
            ignored_states=[p for p in model.parameters() if not p.requires_grad],
            mixed_precision=self.mixed_precision_config,
            device_id=device,
            sync_module_states=device.type == "cuda",  # gloo cannot, and all have built the same
            use_orig_params=True,
        )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, of the first process alone."""
        with self._whole(first_alone=True) as model:
            return model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Numbered as the optimiser has its parameters; Lightning numbers them as the model does,

        so that one process alone would give moments to others than they were of.
        """
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        with self._whole(first_alone=True) as model:
            state = FullyShardedDataParallel.optim_state_dict(model, optimizer)
            return _keyed(OptimStateKeyType.PARAM_ID, state, model, optimizer) if state else state

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """That of any strategy."""
        path = self.broadcast(checkpoint_path)
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only)
        with self._whole(first_alone=False) as model:
            model.load_state_dict(found.pop("state_dict"))
            for optimizer, state in zip(self.optimizers, found["optimizer_states"], strict=True):
                named = _keyed(OptimStateKeyType.PARAM_NAME, state, model, optimizer)
                parts = FullyShardedDataParallel.optim_state_dict_to_load(model, optimizer, named)
                optimizer.load_state_dict(parts)
        return found

    @contextmanager
    def _whole(self, *, first_alone: bool) -> Iterator[FullyShardedDataParallel]:
        """States are whole within, in the first process's memory or in that of all."""
        assert isinstance(self.model, FullyShardedDataParallel), "not set up"
        how = {"offload_to_cpu": self.root_device.type == "cuda", "rank0_only": first_alone}
        with FullyShardedDataParallel.state_dict_type(
            self.model,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(**how),
            FullOptimStateDictConfig(**how),
        ):
            yield self.model


def _keyed(
    by: OptimStateKeyType, state: dict[str, Any], model: Module, optimizer: Optimizer
) -> dict[str, Any]:
    """An optimiser's whole state, its parameters by name or by their number in the optimiser."""
    return FullyShardedDataParallel.rekey_optim_state_dict(state, by, model, optim=optimizer)
