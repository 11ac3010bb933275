"""Connectionist temporal classification for speech recognition (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.errors import RecipeError
from speechfuse.heads.ctc_search import FlashlightSearch, greedy, prefix_beam
from speechfuse.ops import length_mask, normalise, zero_padding
from speechfuse.types import Count, Frames, Share, Tokens


class CTC(Head):
    """A layer norm, a linear layer, bidirectional LSTMs if wanted, a score for every character.

    Token 0 is the blank. Scores and loss are computed in float32.
    """

    predicts: Prediction = "tokens"

    def __init__(
        self,
        in_dim: int,
        *,
        num_tokens: int,
        normalize: Literal["none", "layer_norm", "unit_rms"] = "layer_norm",
        project: Count = 128,
        lstm_layers: Annotated[int, Field(ge=0)] = 1,
        lstm_dim: Count = 128,
        join: Count = 1,
        dropout: Share = 0.1,
        search: Literal["greedy", "beam", "flashlight"] = "greedy",
        beam_size: Count = 16,
        language_model: str | None = None,
        language_weight: float = 1.0,
        symbols: Sequence[str] = (),
    ) -> None:
        """normalize: of every frame first, nothing learned. Without it what an interface with
        convolutions gives is too small at the start, and all frames stay blank.

        project: width after the first linear layer. lstm_dim: width of each direction.

        join: neighbouring frames put together, which divides the frame rate. search: greedy takes
        the best token of each frame; beam sums over paths; flashlight is the package
        flashlight-text, with a KenLM file as language_model. symbols: characters of the tokens
        from 1 on, for the language model; the task fills them in.

        Raises:
            RecipeError: a language model that cannot be read, or that the search does not use.
        """
        super().__init__()
        if language_model and search != "flashlight":
            raise RecipeError(f"ctc: search '{search}' reads no language_model; use 'flashlight'")
        self.normalize, self.join = normalize, join
        self.search, self.beam_size = search, beam_size
        self.project = nn.Linear(in_dim * join, project)
        widths = [project] + [2 * lstm_dim] * lstm_layers
        self.lstms = nn.ModuleList(BidirectionalLSTM(w, lstm_dim) for w in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(widths[-1], num_tokens)
        self._flashlight = (
            FlashlightSearch(symbols, language_model, language_weight, beam_size)
            if search == "flashlight"
            else None
        )

    def lengths(self, frames: Tensor) -> Tensor:
        """Scored frames for these numbers of frames."""
        return (frames + self.join - 1).div(self.join, rounding_mode="floor")

    def log_probs(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, C) in float32 and how many frames of each are valid."""
        hidden = zero_padding(normalise(frames.hidden, self.normalize), frames.lengths)
        lengths = self.lengths(frames.lengths)
        if self.join > 1:
            batch, size, dim = hidden.shape
            hidden = F.pad(hidden, (0, 0, 0, -size % self.join))
            hidden = hidden.reshape(batch, -1, self.join * dim)
        hidden = F.gelu(self.project(hidden))
        for lstm in self.lstms:
            hidden = lstm(self.dropout(hidden), lengths)
        return self.linear(self.dropout(hidden)).float().log_softmax(-1), lengths

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        """Negative log-likelihood, counted in characters; impossible targets count for nothing."""
        log_probs, lengths = self.log_probs(frames)
        total = F.ctc_loss(
            log_probs.transpose(0, 1),
            targets.ids,
            lengths,
            targets.lengths,
            reduction="sum",
            zero_infinity=True,
        )
        ids, sizes = targets.ids, targets.lengths
        twice = (ids[:, 1:] == ids[:, :-1]) & length_mask(sizes - 1, ids.shape[1] - 1)
        possible = sizes + twice.sum(1) <= lengths
        return LossSum(total, int(sizes[possible].sum()))

    def predict(self, frames: Frames) -> list[list[int]]:
        """Token ids without blanks and repetitions."""
        log_probs, lengths = self.log_probs(frames)
        rows = [row[:n].cpu() for row, n in zip(log_probs, lengths.tolist(), strict=True)]
        if self._flashlight is not None:
            return [self._flashlight(row) for row in rows]
        if self.search == "beam":
            return [prefix_beam(row, self.beam_size) for row in rows]
        return [greedy(row) for row in rows]


def frames_needed(ids: Sequence[int]) -> int:
    """Frames that CTC needs for a target: one a token, and a blank between equal neighbours."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))


class BidirectionalLSTM(nn.Module):
    """Forwards and backwards over each utterance's own frames, so that padding is never read.

    The backward half reads every utterance reversed within its length and is turned round again;
    on padded tensors that is about five times as fast as packed sequences on a CPU.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(in_dim, dim, batch_first=True)
        self.back = nn.LSTM(in_dim, dim, batch_first=True)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, T, 2 * dim)."""
        size = hidden.shape[1]
        turned = (lengths[:, None] - 1 - torch.arange(size, device=lengths.device)).clamp_min(0)

        def turn(rows: Tensor) -> Tensor:
            return rows.gather(1, turned[..., None].expand(-1, -1, rows.shape[-1]))

        return torch.cat([self.ahead(hidden)[0], turn(self.back(turn(hidden))[0])], dim=-1)
