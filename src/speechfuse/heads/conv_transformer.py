"""ML-SUPERB's head for recognition (Shi et al. 2023, arXiv:2305.10615; ESPnet's transformer).

frames ─ Linear to 80 ─ Conv 3x3, stride 2 ─ Conv 3x3 ─ Linear to 256 ─ + positions ─ blocks ─ CTC
                        └─────── half the frame rate ──────┘
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.heads.ctc_head import CTCHead, Search
from speechfuse.ops import exporting, length_mask, zero_padding
from speechfuse.types import Count, Frames, Share

MIN_FRAMES = 7  # from which the convolutions give one


class ConvTransformer(CTCHead):
    """Pre-norm transformer blocks after two convolutions over time and features.

    An utterance of n frames gives (n - 1) // 2 - 2, of which none reads padding. ML-SUPERB has 2
    blocks; the multilingual track of Shih & Harwath 2024 (arXiv:2406.12209) has 65.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        num_tokens: int,
        project: Annotated[int, Field(ge=7)] = 80,
        dim: Count = 256,
        blocks: Count = 2,
        attention_heads: Count = 8,
        ffn_dim: Count = 1024,
        dropout: Share = 0.1,
        search: Search = "greedy",
        beam_size: Count = 16,
        language_model: str | None = None,
        language_weight: float = 1.0,
        symbols: Sequence[str] = (),
    ) -> None:
        """project: width that the convolutions read. dim: of the blocks.

        search, beam_size, language_model, language_weight: as of head ctc.
        """
        super().__init__(search, beam_size, language_model, language_weight, symbols)
        self.join = 2
        self.project = nn.Linear(in_dim, project)
        self.conv1 = nn.Conv2d(1, dim, 3, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, 3)
        self.embed = nn.Linear(dim * ((project - 1) // 2 - 2), dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, attention_heads, ffn_dim, dropout, batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_tokens)

    def lengths(self, frames: Tensor) -> Tensor:
        return (torch.div(frames - 1, 2, rounding_mode="floor") - 2).clamp_min(0)

    def log_probs(self, frames: Frames) -> tuple[Tensor, Tensor]:
        hidden = self.project(zero_padding(frames.hidden, frames.lengths))
        behind = MIN_FRAMES if exporting() else max(0, MIN_FRAMES - hidden.shape[1])
        hidden = F.pad(hidden, (0, 0, 0, behind))
        hidden = F.relu(self.conv2(F.relu(self.conv1(hidden[:, None]))))  # (B, dim, T, features)
        hidden = self.embed(hidden.transpose(1, 2).flatten(2))
        scaled = hidden * hidden.shape[-1] ** 0.5
        hidden = self.dropout(scaled + positions(*hidden.shape[1:]).to(hidden))
        lengths = self.lengths(frames.lengths)
        padding = ~length_mask(lengths.clamp_min(1), hidden.shape[1])  # of none, one is computed
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=padding)
        return self.linear(self.norm(hidden)).float().log_softmax(-1), lengths


def positions(size: int, dim: int) -> Tensor:
    """Sine and cosine of every position, (size, dim) (Vaswani et al. 2017, sec. 3.5)."""
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(size)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
