"""What heads with connectionist temporal classification share: the loss and the search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.errors import RecipeError
from speechfuse.heads.ctc_search import FlashlightSearch, greedy, prefix_beam
from speechfuse.ops import length_mask
from speechfuse.types import Frames, Tokens

Search = Literal["greedy", "beam", "flashlight"]


class CTCHead(Head):
    """Scores of tokens for every frame, or for every `join` frames; token 0 is the blank.

    Options of the search are those of `CTC`.
    """

    predicts: Prediction = "tokens"
    join: int  # by which the frame rate is divided

    def __init__(
        self,
        search: Search,
        beam_size: int,
        language_model: str | None,
        language_weight: float,
        symbols: Sequence[str],
    ) -> None:
        super().__init__()
        if language_model and search != "flashlight":
            raise RecipeError(f"ctc: search '{search}' reads no language_model; use 'flashlight'")
        self.search, self.beam_size = search, beam_size
        self._flashlight = (
            FlashlightSearch(symbols, language_model, language_weight, beam_size)
            if search == "flashlight"
            else None
        )

    def search_with(self, beam_size: int) -> None:
        """Without a language model; 1 takes the best token of each frame."""
        self._flashlight = None
        self.search, self.beam_size = "greedy" if beam_size == 1 else "beam", beam_size

    @abstractmethod
    def lengths(self, frames: Tensor) -> Tensor:
        """Scored frames for these numbers of frames."""

    @abstractmethod
    def log_probs(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, C) in float32 and how many frames of each are valid."""

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
        return self.searched(*self.log_probs(frames))

    def searched(self, log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
        """The same of log-probabilities."""
        rows = [row[:n].cpu() for row, n in zip(log_probs, lengths.tolist(), strict=True)]
        if self._flashlight is not None:
            return [self._flashlight(row) for row in rows]
        if self.search == "beam":
            return [prefix_beam(row, self.beam_size) for row in rows]
        return [greedy(row) for row in rows]


def frames_needed(ids: Sequence[int]) -> int:
    """Frames that CTC needs for a target: one a token, and a blank between equal neighbours."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))
