"""Log-mel filterbank: the floor that every result is compared with."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from speechfuse.audio import SAMPLE_RATE, log_mel
from speechfuse.contracts import Upstream, UpstreamPlan
from speechfuse.ops import zero_padding
from speechfuse.types import LayerStack, StackSpec, Waveforms

_WINDOW = 400  # samples, 25 ms


class Filterbank(Upstream):
    """One layer: log10 of mel energies in windows of 25 ms, scaled by (x + 4) / 4.

    Frame j is centred in its cell, on sample (j + 0.5) * hop; a last cell that is at least half
    full counts.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, *, num_mels: int = 80, frame_rate: float = 100.0) -> None:
        """num_mels: features. frame_rate: Hz, a divisor of the sample rate."""
        super().__init__()
        self.hop = round(SAMPLE_RATE / frame_rate)
        self.num_mels = num_mels
        self.spec = StackSpec(1, num_mels, SAMPLE_RATE / self.hop)
        self.min_samples = (self.hop + 1) // 2

    @classmethod
    def plan(cls, *, num_mels: int = 80, frame_rate: float = 100.0) -> UpstreamPlan:
        hop = round(SAMPLE_RATE / frame_rate)
        bins = _WINDOW // 2 + 1
        spectrum = 2.5 * _WINDOW * 8.6  # an FFT of 400 points: 5/2 n log2 n
        macs = SAMPLE_RATE / hop * (spectrum + bins * num_mels)
        return UpstreamPlan(StackSpec(1, num_mels, SAMPLE_RATE / hop), 0, macs, (hop + 1) // 2)

    @torch.no_grad()
    def forward(self, wav: Waveforms) -> LayerStack:
        lengths = (wav.lengths + self.hop // 2) // self.hop
        edge = _WINDOW // 2 - self.hop // 2
        needed = (int(lengths.max()) - 1) * self.hop + _WINDOW
        samples = F.pad(wav.samples, (edge, max(0, needed - edge - wav.samples.shape[1])))
        mel = log_mel(samples, self.num_mels, _WINDOW, self.hop)[..., : int(lengths.max())]
        hidden = (mel.transpose(1, 2) + 4) / 4
        return LayerStack((zero_padding(hidden, lengths),), lengths, self.spec.frame_rate)

    @classmethod
    def identity(cls, *, num_mels: int = 80, frame_rate: float = 100.0) -> dict[str, str]:
        return {"source": f"filterbank, {num_mels} mels at {frame_rate:g} Hz"}
