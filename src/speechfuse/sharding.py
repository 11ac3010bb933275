"""Fully sharded data parallel training (Zhao et al. 2023, arXiv:2304.11277), through Lightning."""

from __future__ import annotations

from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import Module


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
            sync_module_states=True,
            use_orig_params=True,
        )
