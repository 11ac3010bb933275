"""Zero mean and unit variance of pooled vectors, by statistics of the training set."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Standardize(nn.BatchNorm1d):
    """Batch normalisation without a learned scale; a batch of one reads what was seen so far.

    Means over frames are much alike in all utterances. What they share drowns what tells them
    apart, and a linear layer on them takes hundreds of steps to look past it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(input)
