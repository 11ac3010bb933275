"""HarmoniFuse's fusion of transformer layers by task and by what is heard (Si et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from speechfuse.contracts import Interface
from speechfuse.ops import masked_mean, mix
from speechfuse.types import Frames, LayerStack, StackSpec

SHARED = "shared"


class PromptAdaptiveFusion(Interface):
    """A weight for every layer of every position, from the task and from the hidden state.

        scores[l, b, t] = logits[task][l] + ffn(stack.layers[l][b, t])
        alpha = softmax over l of scores                                       (L, B, T)
        hidden[b, t] = sum over l of alpha[l, b, t] * stack.layers[l][b, t]

    ffn is a layer norm, D -> D / 4, GELU, -> 1 without bias (softmax would ignore it), and shared
    by all layers. Its last weights and the logits are zero, so that it starts as the plain mean.
    The sum of a scalar and a feed-forward score is the paper's (arXiv:2509.18570); softmax, one
    alpha for each position and one ffn for all layers are inferred: docs/adr/0012.
    """

    def __init__(
        self,
        spec: StackSpec,
        *,
        tasks: Sequence[str],
        scores: Literal["both", "static", "dynamic"] = "both",
        per: Literal["token", "utterance"] = "token",
        scalar: Literal["per_task", "shared"] = "per_task",
        weights: Literal["softmax", "sigmoid", "none"] = "softmax",
        ffn_dim: Annotated[int, Field(ge=0)] = 0,
        last_layer: float = 0.0,
    ) -> None:
        """scores: static has the scalars alone, dynamic the feed-forward alone.

        per: alpha for every position, or one for each utterance from the mean score over speech and
        prompt, which no later token can change.

        scalar: of each task's own; or shared by all, so that the prompt alone can tell tasks apart.

        weights: what becomes of the scores; sigmoid is 2 / L of it, each layer by itself, none is
        1 / L plus the score, which may be negative: both start as the plain mean too.

        ffn_dim: inner width; 0 is a quarter of the layers'. last_layer: what the last layer's
        scalar starts at; 4 keeps a pretrained transformer nearly as it is.
        """
        super().__init__()
        self.out_dim = spec.dim
        self.reads_prefix = per == "utterance" and scores != "static"
        self.scalar, self.weights = scalar, weights
        start = torch.zeros(spec.num_layers)
        start[-1] = last_layer
        names = [] if scores == "dynamic" else tasks if scalar == "per_task" else [SHARED]
        self.logits = nn.ParameterDict({name: nn.Parameter(start.clone()) for name in names})
        self.ffn: nn.Sequential | None = None
        if scores != "static":
            inner = ffn_dim or max(1, spec.dim // 4)
            last = nn.Linear(inner, 1, bias=False)
            nn.init.zeros_(last.weight)
            self.ffn = nn.Sequential(
                nn.LayerNorm(spec.dim), nn.Linear(spec.dim, inner), nn.GELU(), last
            )

    def heard(self, stack: LayerStack) -> Tensor | None:
        """The feed-forward score of every position, (L, B, T); None if there is no such part."""
        if self.ffn is None:
            return None
        scores: Tensor = self.ffn(stack.stacked())[..., 0]
        return scores

    def prefix_scores(self, prefix: LayerStack) -> Tensor | None:
        """The mean of those over speech and prompt, (L, B, 1), as utterances are weighed by."""
        scores = self.heard(prefix)
        if scores is None:
            return None
        return masked_mean(scores.permute(1, 2, 0), prefix.lengths).T[..., None]

    def alpha(self, task: str, heard: Tensor | None) -> Tensor:
        """Weights over layers: (L,) if nothing was heard, else of the shape of what was."""
        name = task if self.scalar == "per_task" else SHARED
        known: Tensor | None = self.logits[name] if len(self.logits) else None
        if heard is None:
            assert known is not None
            return self._weighted(known)
        return self._weighted(heard if known is None else heard + known[:, None, None])

    def _weighted(self, scores: Tensor) -> Tensor:
        if self.weights == "softmax":
            return scores.softmax(0)
        if self.weights == "sigmoid":
            return 2 * scores.sigmoid() / len(scores)
        return 1 / len(scores) + scores

    def learned_weights(self) -> dict[str, Tensor]:
        """By task, or one for all; none if the hidden state has a say."""
        if self.ffn is not None:
            return {}
        return {name: _shares(self._weighted(logits)) for name, logits in self.logits.items()}

    def layer_weights(self, stack: LayerStack, task: str) -> dict[str, Tensor]:
        """Shares in the sum of every position, (L, B, T), or (L,) if they are static."""
        alpha = _shares(self.alpha(task, self._scores(stack)))
        if alpha.dim() == 3:
            alpha = alpha.expand(-1, *stack.layers[0].shape[:2])
        return {"": alpha}

    def forward(self, stack: LayerStack, task: str) -> Frames:
        """Of a stack alone; weights of an utterance are then those of its own frames."""
        return self.mixed(stack, task, self._scores(stack))

    def _scores(self, stack: LayerStack) -> Tensor | None:
        return self.prefix_scores(stack) if self.reads_prefix else self.heard(stack)

    def mixed(self, stack: LayerStack, task: str, heard: Tensor | None) -> Frames:
        """With scores (L, B, T or 1) that are known already."""
        weights = self.alpha(task, heard)
        if weights.dim() == 3:
            weights = weights[..., None]
            if stack.layers[0].shape[1] == 1:  # a token being written: calls cost more than copies
                hidden = (weights * stack.stacked()).sum(0)
                return Frames(hidden, stack.lengths, stack.frame_rate)
        return Frames(mix(weights, stack.layers), stack.lengths, stack.frame_rate)


def _shares(weights: Tensor) -> Tensor:
    """Sizes of weights that need not sum to one, made to."""
    sizes = weights.abs()
    return sizes / sizes.sum(0)
