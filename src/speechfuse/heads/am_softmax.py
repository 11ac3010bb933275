"""AM-softmax over training speakers (Wang et al. 2018, arXiv:1801.05599)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from speechfuse.contracts import LossSum
from speechfuse.types import Tokens


def am_softmax(
    vectors: Tensor, speakers: Tensor, targets: Tokens, scale: float, margin: float
) -> LossSum:
    """Cross-entropy of scale * (cosine - margin at the true speaker), in float32.

    vectors: (B, D). speakers: one vector for each, (C, D).
    """
    cosine = F.normalize(vectors.float(), dim=-1) @ F.normalize(speakers, dim=-1).T
    true = F.one_hot(targets.ids[:, 0], len(speakers))
    logits = scale * (cosine - margin * true)
    return LossSum(F.cross_entropy(logits, targets.ids[:, 0], reduction="sum"), len(true))
