"""Writing text: the one place where context, interface and head meet transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.context.reading import PromptedFusion
from speechfuse.errors import RecipeError
from speechfuse.heads.text import END, Text
from speechfuse.types import Frames, Generated, LayerStack, Sequences


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
    packed = writer.context.packed(frames, task, prompts=prompts, left=True)
    writer.prefix = packed.hidden.shape[1]
    driven: Any = writer
    ids = driven.generate(
        inputs_embeds=packed.hidden,
        attention_mask=packed.valid.long(),
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
    return [_until_end(row) for row in ids.tolist()]


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
        self.prefix = 0  # positions of speech and prompt, padding before them counted
        self._heard: Tensor | None = None  # what weighs layers for a whole utterance
        self.train(reader.training)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Scores of the token after the last position, (B, 1, C)."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.context.embed(input_ids, self.task)
        batch, size, _ = inputs_embeds.shape
        if attention_mask is None:  # the library leaves out one that is true everywhere
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = torch.ones(batch, seen + size, device=inputs_embeds.device)
        valid = attention_mask.bool()
        prefix = valid.clone()
        prefix[:, self.prefix :] = False
        layers, cache = self.context.run(
            inputs_embeds, valid, prefix, past_key_values, keep=bool(use_cache)
        )
        if layers[0].shape[1] >= self.prefix:  # the prefix is read: whole sequences or its own
            self._heard = self._prefix_scores(layers, valid)
        last = tuple(layer[:, -1:] for layer in layers)
        ones = torch.ones(len(valid), dtype=torch.long, device=valid.device)
        stack = LayerStack(last, ones, self.reader.frame_rate)
        fused = self.reader.fused(stack, self.task, self._heard)
        return CausalLMOutputWithPast(logits=self.head.logits(fused.hidden), past_key_values=cache)

    def _prefix_scores(self, layers: Sequence[Tensor], valid: Tensor) -> Tensor | None:
        """Of sequences whose padding is on the left: turned round so that it is on the right."""
        sizes = valid[:, : self.prefix].sum(1)
        turned = tuple(layer[:, : self.prefix].flip(1) for layer in layers)
        none = torch.zeros_like(sizes)
        return self.reader.prefix_scores(
            Sequences(turned, sizes, none, none, self.reader.frame_rate)
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As the library does it; without a cache, speech and prompt come before every token."""
        if not kwargs.get("use_cache") and not is_first_iteration and inputs_embeds is not None:
            written = self.context.embed(input_ids, self.task)
            inputs_embeds = torch.cat([inputs_embeds, written], dim=1)
            is_first_iteration = True
        library: Any = super()
        made: dict[str, Any] = library.prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return made
