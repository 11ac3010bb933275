"""Text written token after token: next-token cross-entropy, with CTC beside it if wanted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Head, LossSum, Prediction
from speechfuse.ops import length_mask
from speechfuse.types import Count, Frames, Share, Tokens

END = 0  # ends a text; the blank of CTC, which no text has either


class Text(Head):
    """Position u of a text predicts token u + 1, the last one that it ends (token 0).

        loss = (1 - ctc) * sum_u of -log p(token u + 1) + ctc * CTC loss of the speech positions

    It reads a prompted transformer, and `decoding.generate` makes it write: greedy, or the best of
    a beam.
    """

    predicts: Prediction = "tokens"
    reads: Literal["frames", "text"] = "text"
    units = "bpe"

    def __init__(
        self,
        in_dim: int,
        *,
        num_tokens: int,
        longest: int = 100,
        max_tokens: Count | None = None,
        beam_size: Count = 1,
        length_penalty: float = 1.0,
        label_smoothing: Share = 0.0,
        ctc: Share = 0.0,
    ) -> None:
        """max_tokens: where a text is cut, longer ones cannot be trained on; half as many again as
        the longest text of the training set has, if left out.

        beam_size: texts kept while writing, 1 is greedy; scores are divided by the length to the
        power of length_penalty. label_smoothing: share of probability spread over all tokens.
        ctc: share of CTC on speech positions in the loss, which makes them keep to the sound.
        """
        super().__init__()
        self.linear = nn.Linear(in_dim, num_tokens)
        self.branch = nn.Linear(in_dim, num_tokens) if ctc else None
        self.num_tokens, self.ctc = num_tokens, ctc
        self.max_tokens = max_tokens or longest + longest // 2 + 10
        self.beam_size, self.length_penalty = beam_size, length_penalty
        self.label_smoothing = label_smoothing

    def search_with(self, beam_size: int) -> None:
        """1 is greedy."""
        self.beam_size = beam_size

    def loss(self, frames: Frames, targets: Tokens) -> LossSum:
        """Of text positions, T = U + 1; counted in tokens, the end with them."""
        size = frames.hidden.shape[1]
        wanted = F.pad(targets.ids, (0, size - targets.ids.shape[1]), value=END)
        wanted = wanted.masked_fill(~length_mask(targets.lengths, size), END)
        total = F.cross_entropy(
            self.logits(frames.hidden).transpose(1, 2),
            wanted.masked_fill(~length_mask(targets.lengths + 1, size), -100),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return LossSum(total, int(targets.lengths.sum()) + len(targets.lengths))

    def with_ctc(self, loss: LossSum, speech: Frames, targets: Tokens) -> LossSum:
        """The same with CTC's share; a text that the speech positions are too few for adds none."""
        total = F.ctc_loss(
            self.ctc_log_probs(speech).transpose(0, 1),
            targets.ids,
            speech.lengths,
            targets.lengths,
            reduction="sum",
            zero_infinity=True,
        )
        return LossSum((1 - self.ctc) * loss.total + self.ctc * total, loss.count)

    def ctc_log_probs(self, speech: Frames) -> Tensor:
        """Of the tokens at the speech positions, in float32, (B, T, C)."""
        assert self.branch is not None, "made without ctc"
        scores: Tensor = self.branch(speech.hidden).float()
        return scores.log_softmax(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token in float32, (..., D) -> (..., C)."""
        scores: Tensor = self.linear(hidden).float()
        return scores

    def predict(self, frames: Frames) -> list[list[int]]:
        """The most likely next token after each last position."""
        rows = torch.arange(len(frames.lengths), device=frames.lengths.device)
        last = frames.hidden[rows, frames.lengths - 1]
        return [[token] for token in self.logits(last).argmax(-1).tolist()]
