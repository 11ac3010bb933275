"""Connectionist temporal classification for speech recognition (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.heads.ctc_head import CTCHead, Search
from speechfuse.ops import joined_frames, normalise, zero_padding
from speechfuse.types import Count, Frames, Share


class CTC(CTCHead):
    """A layer norm, a linear layer, bidirectional LSTMs if wanted, a score for every character.

    Token 0 is the blank. Scores and loss are computed in float32.
    """

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
        activation: Literal["gelu", "none"] = "gelu",
        search: Search = "greedy",
        beam_size: Count = 16,
        language_model: str | None = None,
        language_weight: float = 1.0,
        symbols: Sequence[str] = (),
    ) -> None:
        """normalize: of every frame first, nothing learned. Without it what an interface with
        convolutions gives is too small at the start, and all frames stay blank.

        project: width after the first linear layer. lstm_dim: width of each direction. activation:
        of the first linear layer; without one, nothing is dropped there either (s3prl's head).

        join: neighbouring frames put together, which divides the frame rate. search: greedy takes
        the best token of each frame; beam sums over paths; flashlight is the package
        flashlight-text, with a KenLM file as language_model. symbols: of the tokens from 1 on, for
        the language model; the task fills them in.

        Raises:
            RecipeError: a language model that cannot be read, or that the search does not use.
        """
        super().__init__(search, beam_size, language_model, language_weight, symbols)
        self.normalize, self.join, self.activation = normalize, join, activation
        self.project = nn.Linear(in_dim * join, project)
        widths = [project] + [2 * lstm_dim] * lstm_layers
        self.lstms = nn.ModuleList(BidirectionalLSTM(w, lstm_dim) for w in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(widths[-1], num_tokens)

    def lengths(self, frames: Tensor) -> Tensor:
        """Scored frames for these numbers of frames."""
        return (frames + self.join - 1).div(self.join, rounding_mode="floor")

    def log_probs(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, C) in float32 and how many frames of each are valid."""
        hidden = zero_padding(normalise(frames.hidden, self.normalize), frames.lengths)
        lengths = self.lengths(frames.lengths)
        if self.join > 1:
            hidden = joined_frames(hidden, self.join)
        hidden = self.project(hidden)
        if self.activation == "gelu":
            hidden = self.dropout(F.gelu(hidden))
        for lstm in self.lstms:
            hidden = self.dropout(lstm(hidden, lengths))
        return self.linear(hidden).float().log_softmax(-1), lengths


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
