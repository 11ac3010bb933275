"""The blocks of a frozen encoder over rows of frames: transformers' weights, nothing for padding.

Products are in the type of their weights. Sums between blocks, norms and what a CPU does of
attention are in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.upstreams.convolutions import activate
from speechfuse.upstreams.products import linear
from speechfuse.upstreams.ragged import Ragged

IN_CACHE = 1 << 18  # scores at a time on a CPU, a megabyte
AT_ONCE = 1 << 24  # scores of one head, 82 s, above which a CPU takes some queries at a time:
QUERIES, PIECE = 64, 1 << 20  # so many at least, with about so many scores


@dataclass(frozen=True)
class Block:
    """What one block is made of, whatever its family calls it."""

    attention: Any  # q_proj, k_proj, v_proj, out_proj
    norm: nn.Module  # before attention if it comes first, else after
    up: nn.Linear
    activation: nn.Module
    down: nn.Linear
    final_norm: nn.Module
    norm_first: bool
    adapter: nn.Module | None = None
    compiled: bool = False

    def __call__(self, hidden: Tensor, ragged: Ragged, attend: Attend) -> Tensor:
        """(N, D) float32 -> (N, D) float32."""
        given = self.norm(hidden) if self.norm_first else hidden
        mixed = attend(self.attention, given, ragged)
        if self.compiled:  # once: views and other strides would be compiled apart
            return _compiled()(self, hidden.contiguous(), mixed.data)
        return _after(self, hidden, mixed)


def _after(block: Block, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention, row by row: (N, D) and what was attended to, (N, D) -> (N, D)."""
    first = block.norm_first
    hidden = hidden + linear(block.attention.out_proj, mixed)
    hidden = hidden if first else block.norm(hidden)
    given = block.final_norm(hidden) if first else hidden
    wide = activate(block.activation, linear(block.up, given))
    hidden = hidden + linear(block.down, wide)
    hidden = hidden if first else block.final_norm(hidden)
    return hidden if block.adapter is None else hidden + block.adapter(hidden)


@cache
def _compiled() -> Callable[[Block, Tensor, Tensor], Tensor]:
    """`_after`, compiled once for all blocks of an encoder and any number of rows."""
    made: Callable[[Block, Tensor, Tensor], Tensor] = torch.compile(_after, dynamic=True)
    return made


Attend = Callable[[Any, Tensor, Ragged], Tensor]


def attend(attention: Any, hidden: Tensor, ragged: Ragged) -> Tensor:
    """Every frame to all frames of its utterance, (N, D) -> (N, D)."""
    count = attention.num_heads

    def fused(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
        hole = None if valid is None else valid[:, None, None]
        q, k, v = (by_head(one, count) for one in (queries, keys, values))
        return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=hole))

    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return ragged.along_time(fused, *(linear(one, hidden) for one in projections))


def by_head(rows: Tensor, count: int) -> Tensor:
    """(B, T, D) -> (B, heads, T, D / heads); in float32 on a CPU, where bfloat16 is slower."""
    rows = rows if rows.is_cuda else rows.float()
    return rows.view(*rows.shape[:2], count, -1).transpose(1, 2)


def joined(heads: Tensor) -> Tensor:
    """(B, heads, T, D / heads) -> (B, T, D)."""
    return heads.transpose(1, 2).flatten(2)


class RelativeAttention:
    """WavLM's attention: a bias by distance, gated by the query (Chen et al. 2022, eq. 4-6).

    The bias of all blocks is one table of distances. Keys in reverse order turn it from a matrix
    of differences, bias[i, j] = t[j - i], into one of sums, f[i + j'], and that is a view of the
    table: of the scores (T, T) no bias is ever written out. On a CPU a few heads at a time stay in
    the processor's cache, and a long utterance has some queries of one head at a time, so that
    memory grows with its length and not with its square.
    """

    def __init__(self, attention: Any, frames: int) -> None:
        """attention: of the first block, which has the table. frames: of the longest utterance."""
        weight = attention.rel_attn_embed.weight
        distances = torch.arange(frames - 1, -frames, -1, device=weight.device)
        buckets = attention._relative_positions_bucket(distances)
        self.table = F.embedding(buckets, weight).t().contiguous()  # (heads, 2 T - 1)
        self.frames = frames

    def __call__(self, attention: Any, hidden: Tensor, ragged: Ragged) -> Tensor:
        count = attention.num_heads
        gates = _gates(attention, hidden)

        def biased(
            queries: Tensor, keys: Tensor, values: Tensor, gate: Tensor, valid: Tensor | None
        ) -> Tensor:
            size = queries.shape[1]
            q, k, v = (by_head(one, count) for one in (queries, keys.flip(1), values.flip(1)))
            start = self.frames - size
            bias = self.table[:, start : start + 2 * size - 1].unfold(1, size, 1).to(q.dtype)
            gate = gate.to(q.dtype).transpose(1, 2)[..., None]  # (B, heads, T, 1)
            hole = None if valid is None else torch.where(valid.flip(1), 0.0, -torch.inf)
            step = count if q.is_cuda else min(count, max(1, IN_CACHE // size**2))
            fits = q.is_cuda or len(q) * step * size**2 <= AT_ONCE
            rows = size if fits else max(QUERIES, PIECE // (len(q) * size))
            mixed = torch.empty_like(q)
            for begin, first in product(range(0, count, step), range(0, size, rows)):
                heads, some = slice(begin, begin + step), slice(first, first + rows)
                score = gate[:, heads, some] * bias[heads, some]
                score = score if hole is None else score + hole[:, None, None].to(score.dtype)
                mixed[:, heads, some] = F.scaled_dot_product_attention(
                    q[:, heads, some], k[:, heads], v[:, heads], attn_mask=score
                )
            return joined(mixed)

        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        rows = (linear(one, hidden) for one in projections)
        return ragged.along_time(biased, *rows, gates)


def _gates(attention: Any, hidden: Tensor) -> Tensor:
    """Of each frame and head, (N, heads), in float32; sums of four outputs are in the weights."""
    module = attention.gru_rel_pos_linear
    weight = module.weight.unflatten(0, (2, 4)).sum(1)
    bias = module.bias.unflatten(0, (2, 4)).sum(1)
    heads = hidden.view(len(hidden), attention.num_heads, -1)
    update, reset = F.linear(heads, weight, bias).sigmoid().unbind(-1)
    gates: Tensor = update * (reset * attention.gru_rel_pos_const.flatten() - 1.0) + 2.0
    return gates


def narrow(blocks: Sequence[Block], dtype: torch.dtype) -> None:
    """Put the weights of large products into this type; norms, gates and adapters stay."""
    for block in blocks:
        one = block.attention
        for module in (one.q_proj, one.k_proj, one.v_proj, one.out_proj, block.up, block.down):
            module.to(dtype)
