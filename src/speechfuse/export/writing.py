"""HarmoniFuse's writing without `generate`: speech and prompt once, then a token at a time.

    speech and prompt ─ blocks ─ layers ─ fusion at the last position ─ scores of token 1
                           └ cache ─ token 1 ─ blocks ─ layers ─ fusion ─ scores of token 2
                                └ cache ─ token 2 ─ ...

The cache is one tensor (2, L, B, heads, P, D), keys and values of all blocks. Sequences are padded
on the right, so what is written stands behind the padding, which attention leaves out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.context.reading import PromptedFusion
from speechfuse.errors import ExportError
from speechfuse.heads.text import Text
from speechfuse.ops import length_mask
from speechfuse.types import Frames, LayerStack, Where


class Prefix(NamedTuple):
    """Speech and prompt after all blocks."""

    layers: tuple[Tensor, ...]  # L tensors (B, P, D)
    speech: Tensor  # (B,), positions of speech, without padding
    total: Tensor  # (B,), and of the prompt with it
    bound: int  # what no number of speech positions exceeds
    cache: Tensor


class _Cache:
    """What a block of transformers asks: keys and values with those that were before."""

    def __init__(self, past: Tensor | None) -> None:
        self.past, self.seen = past, dict[int, tuple[Tensor, Tensor]]()

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        if self.past is not None:
            keys = torch.cat([self.past[0, layer], keys], dim=2)
            values = torch.cat([self.past[1, layer], values], dim=2)
        self.seen[layer] = keys, values
        return keys, values

    def stacked(self) -> Tensor:
        both = zip(*(self.seen[layer] for layer in sorted(self.seen)), strict=True)
        return torch.stack([torch.stack(layers) for layers in both])


class Prompted(nn.Module):
    """A reader with the prompt that each task has learned, if it takes none in words."""

    def __init__(self, reader: PromptedFusion, tasks: list[str]) -> None:
        """Raises ExportError if the context is none that ships with the library."""
        super().__init__()
        if not isinstance(reader.context, PromptedTransformer):
            raise ExportError(
                f"context {type(reader.context).__name__} cannot be exported; only "
                "prompted_transformer can"
            )
        self.reader, self.context = reader, reader.context
        for task in tasks:
            if task not in self.context.worded:
                prompt = self.context._prompt(task, 1, None)[0].detach().clone()  # (1, N, D)
                self.register_buffer(f"prompt_{task}", prompt)

    def prefix(self, frames: Frames, task: str, words: Tensor | None) -> Prefix:
        """What the blocks make of speech and prompt. words: its bytes (N,), of one in words."""
        hidden, speech = self.context._speech(frames)
        prompt: Tensor
        if words is None:
            prompt = getattr(self, f"prompt_{task}")
        else:
            assert self.context.words is not None
            prompt = self.context.words(words)[None]
        bound, many = hidden.shape[1], prompt.shape[1]
        both = torch.cat([hidden, prompt.expand(hidden.shape[0], -1, -1)], dim=1)
        place = torch.arange(bound + many)
        total = speech + many
        # Position p is frame p of speech, or word p - n of the prompt behind n frames.
        index = torch.where(place < speech[:, None], place, bound + place - speech[:, None])
        index = index.clamp_max(bound + many - 1)
        valid = length_mask(total, bound + many)
        packed = both.gather(1, index[..., None].expand(-1, -1, both.shape[-1])) * valid[..., None]
        mask = valid[:, None, None].expand(-1, 1, bound + many, -1)
        if self.context.causal:
            mask = mask & (place <= place[:, None])
        cache = _Cache(None)
        layers = self.context.all_blocks(packed, mask, place.expand(packed.shape[0], -1), cache)
        return Prefix(layers, speech, total, bound, cache.stacked())

    def at(self, prefix: Prefix, where: Where) -> LayerStack:
        """The layers at some positions; text: where the first token is predicted."""
        rate = self.reader.frame_rate
        if where == "speech":
            layers = tuple(layer[:, : prefix.bound] for layer in prefix.layers)
            return LayerStack(layers, prefix.speech, rate)
        if where == "prefix":
            return LayerStack(prefix.layers, prefix.total, rate)
        dim = prefix.layers[0].shape[-1]
        last = (prefix.total - 1)[:, None, None].expand(-1, 1, dim)
        layers = tuple(layer.gather(1, last) for layer in prefix.layers)
        return LayerStack(layers, torch.ones_like(prefix.total), rate)

    def heard(self, prefix: Prefix) -> Tensor | None:
        """By what the layers of an utterance are weighed as a whole, (L, B, 1), if they are."""
        return self.reader.prefix_scores(self.at(prefix, "prefix"))


class Decoder(nn.Module):
    """One step of writing, for one task."""

    def __init__(self, prompted: Prompted, head: Text, task: str) -> None:
        super().__init__()
        self.reader, self.context = prompted.reader, prompted.context
        self.head, self.task = head, task

    def forward(
        self, tokens: Tensor, valid: Tensor, cache: Tensor, heard: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores of the token after these and the cache with them.

        tokens: (B,), just written. valid: (B, P), true where a position in the cache is none of
        padding. heard: (L, B, 1), if the layers are weighed by the whole utterance.
        """
        hidden = self.context.embed(tokens[:, None], self.task)
        mask = F.pad(valid, (0, 1), value=True)[:, None, None]
        positions = valid.long().sum(1, keepdim=True)
        kept = _Cache(cache)
        layers = self.context.all_blocks(hidden, mask, positions, kept)
        stack = LayerStack(layers, torch.ones_like(tokens), self.reader.frame_rate)
        fused = self.reader.fused(stack, self.task, heard)
        return self.head.logits(fused.hidden)[:, 0], kept.stacked()
