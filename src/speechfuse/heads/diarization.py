"""Frame by frame, who speaks; trained whatever the order of speakers (Fujita et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.errors import RecipeError
from speechfuse.heads.ctc import BidirectionalLSTM
from speechfuse.ops import length_mask, normalise, zero_padding
from speechfuse.types import Count, Frames, Share, Tokens


class Diarization(Head):
    """A linear layer, bidirectional LSTMs if wanted, one score for each speaker and frame.

        loss = min over orders of speakers of the binary cross-entropies (arXiv:1909.05952)

    Targets are triples of speaker, start and end in milliseconds. A frame belongs to a turn if its
    middle does: (t + 0.5) / frame_rate.
    """

    predicts: Prediction = "turns"

    def __init__(
        self,
        in_dim: int,
        *,
        num_classes: int,
        normalize: Literal["none", "layer_norm", "unit_rms"] = "layer_norm",
        project: Count = 96,
        lstm_layers: Annotated[int, Field(ge=0)] = 1,
        lstm_dim: Count = 96,
        dropout: Share = 0.1,
        median: Count = 11,
    ) -> None:
        """normalize: of every frame first, nothing learned. project: width after the first layer.

        lstm_dim: width of each direction. median: frames of the median filter over decisions, 1 is
        none.

        Raises:
            RecipeError: an even median, which would lean to one side.
        """
        super().__init__()
        if median % 2 == 0:
            raise RecipeError(f"diarization: median {median} is even; use {median + 1}")
        self.normalize, self.median = normalize, median
        self.project = nn.Linear(in_dim, project)
        widths = [project] + [2 * lstm_dim] * lstm_layers
        self.lstms = nn.ModuleList(BidirectionalLSTM(w, lstm_dim) for w in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(widths[-1], num_classes)

    def logits(self, frames: Frames) -> Tensor:
        """Unnormalised scores of each speaker, (B, T, C) in float32."""
        hidden = zero_padding(normalise(frames.hidden, self.normalize), frames.lengths)
        hidden = F.gelu(self.project(hidden))
        for lstm in self.lstms:
            hidden = lstm(self.dropout(hidden), frames.lengths)
        logits: Tensor = self.linear(self.dropout(hidden))
        return logits.float()

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        """Counted in frames times speakers."""
        logits = self.logits(frames)
        speakers = logits.shape[-1]
        wanted = activity(targets, speakers, logits.shape[1], frames.frame_rate)
        mask = length_mask(frames.lengths, logits.shape[1])[..., None]
        # Of every output with every speaker, (B, C, C); an order of speakers picks one in each row.
        pairs = F.binary_cross_entropy_with_logits(
            logits[..., :, None].expand(-1, -1, -1, speakers),
            wanted[..., None, :].expand(-1, -1, speakers, -1),
            reduction="none",
        )
        pairs = pairs.masked_fill(~mask[..., None], 0.0).sum(1)
        outputs = torch.arange(speakers, device=logits.device)
        orders = [pairs[:, outputs, list(order)].sum(-1) for order in permutations(range(speakers))]
        total = torch.stack(orders).amin(0).sum()
        return LossSum(total, int(frames.lengths.sum()) * speakers)

    def predict(self, frames: Frames) -> list[list[tuple[int, float, float]]]:
        """Turns as speaker from 0, start and end in seconds."""
        active = self.logits(frames) > 0
        sizes = frames.lengths.tolist()
        return [
            _turns(_filtered(row[:size], self.median), frames.frame_rate)
            for row, size in zip(active, sizes, strict=True)
        ]


def activity(targets: Tokens, speakers: int, frames: int, rate: float) -> Tensor:
    """1 where a speaker speaks, (B, T, C): of triples speaker, start and end in milliseconds.

    Triples of zeros are padding, they last no time.
    """
    slot, start, end = targets.ids.reshape(len(targets.ids), -1, 3).unbind(-1)  # (B, N)
    times = (torch.arange(frames, device=targets.ids.device) + 0.5) / rate * 1000
    inside = (start[:, None] <= times[:, None]) & (times[:, None] < end[:, None])  # (B, T, N)
    of_speaker = F.one_hot(slot, speakers)[:, None]  # (B, 1, N, C)
    return (inside[..., None] & (of_speaker == 1)).any(2).float()


def _filtered(active: Tensor, median: int) -> Tensor:
    """The majority of the frames around each, (T, C); at the ends of those that exist."""
    columns = active.float().T[None]
    shares = F.avg_pool1d(columns, median, 1, median // 2, count_include_pad=False)
    return shares[0].T > 0.5


def _turns(active: Tensor, rate: float) -> list[tuple[int, float, float]]:
    found = [
        (index, start / rate, end / rate)
        for index, column in enumerate(active.T.tolist())
        for start, end in _runs(column)
    ]
    return sorted(found, key=lambda turn: turn[1])


def _runs(column: Sequence[bool]) -> list[tuple[int, int]]:
    """First frame and frame after the last of every run of True."""
    edges = [i for i in range(len(column) + 1) if _at(column, i) != _at(column, i - 1)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(column: Sequence[bool], index: int) -> bool:
    return 0 <= index < len(column) and column[index]
