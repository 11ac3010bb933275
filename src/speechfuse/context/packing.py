"""Parts of several utterances joined without gaps, padding on one side only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechfuse.ops import length_mask


class Packed(NamedTuple):
    """Sequences of [speech; prompt; text] in one tensor."""

    hidden: Tensor  # (B, T, D), zero where there is padding
    valid: Tensor  # (B, T), true where a position is none
    prefix: Tensor  # (B, T), true at speech and prompt
    sizes: tuple[Tensor, Tensor, Tensor]  # (B,) each: positions of speech, prompt and text


def pack(parts: Sequence[tuple[Tensor, Tensor]], *, left: bool = False) -> Packed:
    """Join two or three parts, (B, T_i, D) padded on the right with lengths (B,), row by row.

    s s s . p t t .        s s s p t t .          . s s s p t t
    s . . . p t . .   ->   s p t . . . .   left:  . . . . s p t
    """
    hidden = torch.cat([part for part, _ in parts], dim=1)
    there = torch.cat([length_mask(sizes, part.shape[1]) for part, sizes in parts], dim=1)
    sizes = [size for _, size in parts]
    total = torch.stack(sizes).sum(0)
    width = int(total.max())
    # A stable sort brings what is there together and keeps its order.
    order = (there if left else ~there).long().argsort(dim=1, stable=True)
    order = order[:, -width:] if left else order[:, :width]
    packed = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    place = (
        torch.arange(width, device=hidden.device) - (width - total if left else 0 * total)[:, None]
    )
    valid = (place >= 0) & (place < total[:, None])
    prefix = valid & (place < (sizes[0] + sizes[1])[:, None])
    text = sizes[2] if len(sizes) > 2 else torch.zeros_like(total)
    return Packed(packed * valid[..., None], valid, prefix, (sizes[0], sizes[1], text))
