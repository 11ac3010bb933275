"""What happens between fusion and head: SpecAugment in training, normalisation over an utterance.

fused frames ─ time warp ─ time masks ─ feature masks ─ minus mean (/ deviation) ─► head
               └────────── training only ───────────┘   └── always ──┘
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.ops import masked_mean, zero_padding
from speechfuse.recipe import AugmentRecipe
from speechfuse.types import Frames


class SpecAugment(nn.Module):
    """Warps time and zeroes stretches of frames and of features (Park et al. 2019, 1904.08779).

    Every utterance by itself and within its valid frames, of which one at least stays. Random
    numbers are the CPU's on every device, so that a step's seed decides them.
    """

    def __init__(self, options: AugmentRecipe) -> None:
        super().__init__()
        self.options = options

    def forward(self, frames: Frames) -> Frames:
        if not self.training:
            return frames
        rows = [
            self._augmented(row, int(size))
            for row, size in zip(frames.hidden, frames.lengths.tolist(), strict=True)
        ]
        return Frames(torch.stack(rows), frames.lengths, frames.frame_rate)

    def _augmented(self, hidden: Tensor, size: int) -> Tensor:
        """One utterance (T, D) with `size` valid frames."""
        options = self.options
        valid = time_warped(hidden[:size], options.time_warp)
        width = int(options.time_share * size) if options.time_share else options.time_width
        kept = _kept(size, options.time_masks, width)[:, None]
        kept = kept * _kept(hidden.shape[1], options.feature_masks, options.feature_width)
        return torch.cat([valid * kept.to(valid), hidden[size:]])


def time_warped(hidden: Tensor, window: int) -> Tensor:
    """Frames (T, D) before a random one are stretched, those after it pressed, or vice versa.

    As ESPnet and s3prl do it: bicubic, the frame moves by less than `window`; an utterance of two
    windows or less stays.
    """
    size = len(hidden)
    if not window or size <= 2 * window:
        return hidden
    centre = _draw(window, size - window)
    moved = _draw(centre - window, centre + window) + 1

    def resized(part: Tensor, frames: int) -> Tensor:
        shape = (frames, part.shape[1])
        return F.interpolate(part[None, None], shape, mode="bicubic", align_corners=False)[0, 0]

    return torch.cat([resized(hidden[:centre], moved), resized(hidden[centre:], size - moved)])


def _kept(size: int, masks: int, width: int) -> Tensor:
    """One where nothing is masked, (size,); a mask is 0 to width - 1 wide, as in the toolkits."""
    kept = torch.ones(size)
    for _ in range(masks):
        wide = min(_draw(0, max(1, width)), size - 1)
        first = _draw(0, size - wide)
        kept[first : first + wide] = 0
    return kept


def _draw(low: int, high: int) -> int:
    """From low to high - 1."""
    return int(torch.randint(low, high, ()))


class UtteranceNorm(nn.Module):
    """Takes from every feature its mean over the utterance's valid frames; nothing learned."""

    def __init__(self, *, variance: bool) -> None:
        """variance: divide by the standard deviation too."""
        super().__init__()
        self.variance = variance

    def forward(self, frames: Frames) -> Frames:
        hidden = frames.hidden - masked_mean(frames.hidden, frames.lengths)[:, None]
        if self.variance:
            deviation = (masked_mean(hidden.square(), frames.lengths) + 1e-10).sqrt()
            hidden = hidden / deviation[:, None]
        return Frames(zero_padding(hidden, frames.lengths), frames.lengths, frames.frame_rate)
