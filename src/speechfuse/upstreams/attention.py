"""What the families share: a mask that keeps padding out of attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechfuse.ops import all_valid, length_mask

ATTENTION_SECONDS = 10.0  # clip length for which plans count the products of attention


def attention_mask(config: Any, hidden: Tensor, lengths: Tensor) -> Tensor | None:
    """In the form that the model's attention takes; None where nothing is padded."""
    from transformers.masking_utils import create_bidirectional_mask

    valid = length_mask(lengths, hidden.shape[1])
    if all_valid(valid):
        return None
    make: Any = create_bidirectional_mask
    mask: Tensor | None = make(config=config, inputs_embeds=hidden, attention_mask=valid)
    return mask
