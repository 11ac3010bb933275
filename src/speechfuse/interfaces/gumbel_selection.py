"""One layer for each feature dimension (Chiu et al. 2024, doi 10.21437/Interspeech.2024-849)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.contracts import Interface
from speechfuse.ops import mix
from speechfuse.types import Count, Frames, LayerStack, Positive, StackSpec


class GumbelSelection(Interface):
    """Learned logits decide which layer supplies each feature ("GumD" in arXiv:2511.08389).

        sample = softmax over l of (logits + Gumbel noise) / temperature      (L, D)
        hidden[b, t, d] = stack.layers[c[d]][b, t, d]
        training:   c[d] = argmax over l of sample[l, d], with the gradient of the sample
        evaluation: c[d] = argmax over l of logits[l, d]

    Straight-through Gumbel softmax (Jang et al. 2017, arXiv:1611.01144), one draw for a whole
    batch. Zero logits start as an even draw in training and as layer 0 in evaluation. Temperature,
    hardness and annealing are not published; the defaults are those of `F.gumbel_softmax` with
    hard=True.
    """

    linear = True  # one draw for a whole batch
    steps: Tensor

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        temperature: Positive = 1.0,
        final_temperature: Positive | None = None,
        anneal_steps: Count = 1000,
        soft: bool = False,
    ) -> None:
        """final_temperature: reached geometrically after anneal_steps batches of training, and
        kept; without it the temperature stays as it is. soft: train on the sample itself.
        """
        super().__init__()
        self.out_dim = spec.dim
        self.logits = nn.Parameter(torch.zeros(spec.num_layers, spec.dim))
        self.register_buffer("steps", torch.tensor(0))  # batches of training seen
        self.temperature, self.anneal_steps, self.soft = temperature, anneal_steps, soft
        self.final_temperature = final_temperature or temperature

    def learned_weights(self) -> dict[str, Tensor]:
        """How likely a draw takes each feature from each layer, (L, D)."""
        return {"": self.logits.softmax(0)}

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """The share of features that evaluation takes from each layer, (L,)."""
        return {"": self._selected(self.logits).mean(1)}

    def forward(self, stack: LayerStack, task: str) -> Frames:
        weights = self._sampled() if self.training else self._selected(self.logits)
        return Frames(mix(weights, stack.layers), stack.lengths, stack.frame_rate)

    def current_temperature(self) -> Tensor:
        """After the batches of training seen so far, ()."""
        share = (self.steps / self.anneal_steps).clamp_max(1)
        return self.temperature * (self.final_temperature / self.temperature) ** share

    def _sampled(self) -> Tensor:
        noise = -torch.empty_like(self.logits).exponential_().log()
        sample = ((self.logits + noise) / self.current_temperature()).softmax(0)
        self.steps += 1
        return sample if self.soft else self._selected(sample) + (sample - sample.detach())

    @staticmethod
    def _selected(scores: Tensor) -> Tensor:
        """One where a layer has the highest score of a feature, zero elsewhere, (L, D)."""
        return F.one_hot(scores.argmax(0), len(scores)).T.to(scores.dtype)
