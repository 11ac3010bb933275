"""Log-mel filterbank: the floor that every result is compared with."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from speechfuse.audio import SAMPLE_RATE, log_mel, mel_macs
from speechfuse.contracts import Upstream, UpstreamPlan
from speechfuse.errors import RecipeError
from speechfuse.ops import exporting, length_mask, longest, zero_padding
from speechfuse.types import Count, LayerStack, StackSpec, Waveforms

_WINDOW = 400  # samples, 25 ms


class Filterbank(Upstream):
    """One layer: log10 of mel energies in windows of 25 ms, scaled by (x + 4) / 4.

    Frame j is centred in its cell, on sample (j + 0.5) * hop; a last cell that is at least half
    full counts.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self, *, num_mels: Count = 80, frame_rate: Annotated[float, Field(gt=0, le=1000)] = 100.0
    ) -> None:
        """num_mels: features. frame_rate: Hz, a divisor of the sample rate.

        Raises:
            RecipeError: it is none.
        """
        super().__init__()
        hop = SAMPLE_RATE / frame_rate
        if not hop.is_integer():
            divisors = [rate for rate in range(1, 1001) if SAMPLE_RATE % rate == 0]
            below = [rate for rate in divisors if rate < frame_rate]
            near = [*below[-1:], divisors[len(below)]]
            raise RecipeError(
                f"filterbank: frame_rate {frame_rate:g} is no divisor of {SAMPLE_RATE} Hz; "
                f"use {' or '.join(str(rate) for rate in near)}"
            )
        self.hop = int(hop)
        self.num_mels = num_mels
        spec = StackSpec(1, num_mels, SAMPLE_RATE / self.hop)
        macs = spec.frame_rate * mel_macs(num_mels, _WINDOW)
        self.plan = UpstreamPlan(spec, 0, macs, (self.hop + 1) // 2)

    @torch.no_grad()
    def forward(self, wav: Waveforms) -> LayerStack:
        lengths = (wav.lengths + self.hop // 2) // self.hop
        edge, given = _WINDOW // 2 - self.hop // 2, wav.samples.shape[1]
        frames = longest(lengths, (given + self.hop // 2) // self.hop)
        needed = (frames - 1) * self.hop + _WINDOW
        silent = wav.samples * length_mask(wav.lengths, given)
        behind = _WINDOW + self.hop if exporting() else max(0, needed - edge - given)
        samples = F.pad(silent, (edge, behind))
        mel = log_mel(samples, self.num_mels, _WINDOW, self.hop)[..., :frames]
        hidden = (mel.transpose(1, 2) + 4) / 4
        return LayerStack((zero_padding(hidden, lengths),), lengths, self.plan.spec.frame_rate)

    def identity(self) -> dict[str, str]:
        rate = self.plan.spec.frame_rate
        return {"source": f"filterbank, {self.num_mels} mels at {rate:g} Hz"}
