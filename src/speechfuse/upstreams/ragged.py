"""Frames of several utterances one after the other, without padding between them.

    utterance 0   a0 a1 a2           rows   a0 a1 a2 b0 b1 c0 c1      (N, D)
    utterance 1   b0 b1
    utterance 2   c0 c1

Most of a transformer looks at one row at a time, and then nothing is computed for padding. What
looks along time, attention and convolutions, has the utterances apart again: one by one on a CPU,
where each is work enough, and side by side with padding on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechfuse.ops import length_mask

Along = Callable[..., Tensor]  # of tensors (B, T, ...) and a mask (B, T), None if all is valid


@dataclass(frozen=True)
class Ragged:
    """Where each utterance lies among the rows."""

    lengths: Tensor  # (B,) int64, frames
    together: bool  # along time all utterances at once

    @cached_property
    def sizes(self) -> list[int]:
        sizes: list[int] = self.lengths.tolist()
        return sizes

    @cached_property
    def mask(self) -> Tensor | None:
        """True at the frames of a padded tensor, (B, T); None if nothing is padded."""
        longest = max(self.sizes)
        return None if min(self.sizes) == longest else length_mask(self.lengths, longest)

    def rows(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...); T may be longer than needed."""
        if len(self.sizes) == 1:
            return padded[0, : self.sizes[0]]
        if self.mask is None:
            return padded[:, : self.sizes[0]].flatten(0, 1)
        return padded[:, : self.mask.shape[1]][self.mask]

    def padded(self, rows: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros beyond each utterance."""
        if self.mask is None:
            return rows.view(len(self.sizes), self.sizes[0], *rows.shape[1:])
        return pad_sequence(list(rows.split(self.sizes)), batch_first=True)

    def along_time(self, call: Along, *rows: Tensor) -> Tensor:
        """What a call makes of utterances, each of its rows side by side: (N, ...) -> (N, ...)."""
        if self.together or len(self.sizes) == 1:
            return self.rows(call(*(self.padded(one) for one in rows), self.mask))
        apart = zip(*(one.split(self.sizes) for one in rows), strict=True)
        return torch.cat([call(*(one[None] for one in each), None)[0] for each in apart])
