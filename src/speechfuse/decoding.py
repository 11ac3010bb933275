"""Writing text: the one place where context, interface and head meet transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from speechfuse.context.packing import Packed
from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.context.reading import PromptedFusion
from speechfuse.errors import RecipeError
from speechfuse.heads.text import END, Text
from speechfuse.types import Frames, Generated, LayerStack


@torch.no_grad()
def generate(
    reader: PromptedFusion,
    head: Text,
    frames: Frames,
    task: str,
    prompts: Sequence[str] | None = None,
    *,
    use_cache: bool = True,
) -> list[Generated]:
    """What the head writes for every utterance: greedy, or the best of its beam.

    Always ends: at the end token, or cut at the head's max_tokens. use_cache: false reads
    everything again for each token, to the same end.
    """
    writer = Writer(reader, head, task)
    writer.heard = writer.context.packed(frames, task, prompts=prompts, left=True)
    return driven(writer, writer.heard.valid, head, use_cache=use_cache)


def driven(writer: Any, prefix: Tensor, head: Text, *, use_cache: bool = True) -> list[Generated]:
    """What the library makes a decoder write after a prefix, (B, T) true where it is no padding.

    The prefix stands as tokens that nothing reads: of one given as `inputs_embeds` the library
    always keeps a cache, whatever it is told.
    """
    ids = writer.generate(
        input_ids=torch.full(prefix.shape, END, device=prefix.device),
        attention_mask=prefix.long(),
        generation_config=GenerationConfig(
            max_new_tokens=head.max_tokens,
            num_beams=head.beam_size,
            length_penalty=head.length_penalty,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
            use_cache=use_cache,
        ),
    )
    return [_until_end(row) for row in ids[:, prefix.shape[1] :].tolist()]


def _until_end(row: list[int]) -> Generated:
    if END in row:
        return Generated(row[: row.index(END)], cut=False)
    return Generated(row, cut=True)


class Writer(PreTrainedModel, GenerationMixin):
    """A decoder as `generate` drives it; it owns nothing, and is made anew for each call."""

    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, reader: PromptedFusion, head: Text, task: str) -> None:
        if not isinstance(reader.context, PromptedTransformer):
            raise RecipeError(
                f"context {type(reader.context).__name__} cannot write; use prompted_transformer"
            )
        config = deepcopy(reader.context.blocks.config)
        config.vocab_size = head.num_tokens
        super().__init__(config)
        self.reader, self.context, self.head, self.task = reader, reader.context, head, task
        self.heard: Packed | None = None  # speech and prompt, padding before them
        self._scores: Tensor | None = None  # what weighs layers for a whole utterance
        self.train(reader.training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Scores of the token after the last position, (B, 1, C)."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:  # the library leaves out one that is true everywhere
            attention_mask = input_ids.new_ones(len(input_ids), seen + input_ids.shape[1])
        valid = attention_mask.bool()
        prefix: Tensor | None = None
        if seen:
            hidden = self.context.embed(input_ids, self.task)
        else:
            hidden, prefix = self._whole(input_ids)
        layers = self.context.run(hidden, valid, prefix, past_key_values)
        if prefix is not None and self.reader.reads_prefix:
            self._scores = self._prefix_scores(layers, prefix)
        last = tuple(layer[:, -1:] for layer in layers)
        ones = torch.ones(len(valid), dtype=torch.long, device=valid.device)
        stack = LayerStack(last, ones, self.reader.frame_rate)
        fused = self.reader.fused(stack, self.task, self._scores)
        return CausalLMOutputWithPast(
            logits=self.head.logits(fused.hidden), past_key_values=past_key_values
        )

    def _whole(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Speech, prompt and what is written for each beam, and where the first two are."""
        assert self.heard is not None
        beams, size = len(ids) // len(self.heard.valid), self.heard.valid.shape[1]
        written = self.context.embed(ids[:, size:], self.task)
        hidden = torch.cat([self.heard.hidden.repeat_interleave(beams, 0), written], dim=1)
        prefix = self.heard.prefix.repeat_interleave(beams, 0)
        return hidden, F.pad(prefix, (0, written.shape[1]))

    def _prefix_scores(self, layers: Sequence[Tensor], prefix: Tensor) -> Tensor | None:
        """Of sequences whose padding is on the left: turned round so that it is on the right."""
        assert self.heard is not None
        turned = tuple(layer[:, : self.heard.valid.shape[1]].flip(1) for layer in layers)
        sizes = prefix.sum(1)
        return self.reader.prefix_scores(LayerStack(turned, sizes, self.reader.frame_rate))
