"""Zero mean and unit variance of pooled vectors, by statistics of the training set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class Standardize(nn.BatchNorm1d):
    """Batch normalisation without a learned scale; a batch of one reads what was seen so far.

    Means over frames are much alike in all utterances. What they share drowns what tells them
    apart, and a linear layer on them takes hundreds of steps to look past it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, affine=False)
        self.parts = 1  # of a batch in training; torch's SyncBatchNorm needs a GPU

    def forward(self, input: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if self.training and self.parts > 1:
            return self._of_all_parts(input)
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(input)

    def _of_all_parts(self, input: Tensor) -> Tensor:
        """By the mean and variance of the rows that all processes have."""
        size = int(_summed(input.new_tensor(float(len(input)))))
        mean = _summed(input.sum(0)) / size
        variance = _summed((input - mean).square().sum(0)) / size
        seen = (self.running_mean, mean), (self.running_var, variance * size / (size - 1))
        for running, found in seen:
            assert running is not None, "batch normalisation without running statistics"
            running.lerp_(found.detach(), self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return (input - mean) / (variance + self.eps).sqrt()


def _summed(own: Tensor) -> Tensor:
    """The sum over processes, whose gradient is that of the sum of their losses."""
    total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        distributed.all_reduce(total)
        return total
