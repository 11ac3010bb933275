"""A toy encoder of which one layer alone holds what is heard."""

import torch

from speechfuse.contracts import Upstream, UpstreamPlan
from speechfuse.types import LayerStack, StackSpec
from speechfuse.upstreams.filterbank import Filterbank


class Tower(Upstream):
    """Layer `heard` is log-mel, every other one is zero; nothing is heard where it is -1."""

    sample_rate = 16000

    def __init__(self, *, heard: int = 1, depth: int = 3, layers: list[int] | None = None) -> None:
        super().__init__()
        self.heard = heard
        self._layers = tuple(layers if layers is not None else range(depth + 1))
        self.mel = Filterbank(num_mels=24)
        spec = StackSpec(len(self._layers), 24, self.mel.plan.spec.frame_rate)
        last = self._layers[-1]
        self.plan = UpstreamPlan(spec, 1000 * last, 1e6 * (last + 1), self.mel.plan.min_samples)

    @property
    def layers(self):
        return self._layers

    def forward(self, wav):
        mel = self.mel(wav)
        found = [
            mel.layers[0] if number == self.heard else torch.zeros_like(mel.layers[0])
            for number in self._layers
        ]
        return LayerStack(tuple(found), mel.lengths, mel.frame_rate)

    def identity(self):
        return {"source": f"a tower that hears at {self.heard}"}
