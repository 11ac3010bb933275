"""The prompted transformer of HarmoniFuse, on decoder blocks of transformers (Si et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from speechfuse.context.packing import Packed, pack
from speechfuse.contracts import Context
from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.ops import joined_frames, zero_padding
from speechfuse.types import Count, Frames, Sequences, Share, StackSpec, Tokens

BYTES = 257  # those of UTF-8, and one that ends a prompt in words


class Preset(NamedTuple):
    """Sizes of a transformer: gated feed-forwards of 8/3 dim, which weigh as much as plain of 4."""

    layers: int
    dim: int
    heads: int
    ffn: int
    join: int


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(layers=12, dim=1024, heads=16, ffn=2736, join=1),
    "small": Preset(layers=6, dim=512, heads=8, ffn=1368, join=2),
    "tiny": Preset(layers=4, dim=128, heads=4, ffn=344, join=4),
}


class PromptedTransformer(Context):
    """[speech; prompt; text] through Llama or Qwen2 blocks, from scratch unless `pretrained`.

    speech    layer norm and linear layer on every `join` frames
    prompt    one learned vector for each task; or words, byte by byte, for a task that has prompts
    text      a table of embeddings for each task that writes

    The last position of the prompt predicts the first token, so a text needs no token to start it.
    Positions are counted by rotary embeddings over valid positions. What the paper says of all
    this and what is our choice: docs/adr/0012.
    """

    def __init__(
        self,
        in_dim: int,
        frame_rate: float,
        *,
        tasks: Sequence[str],
        text_sizes: Mapping[str, int],
        prompts: Mapping[str, Sequence[str]],
        preset: Literal["paper", "small", "tiny"] = "tiny",
        blocks: Literal["llama", "qwen2"] = "llama",
        pretrained: str | None = None,
        layers: Count | None = None,
        dim: Count | None = None,
        heads: Count | None = None,
        join: Count | None = None,
        causal: bool = False,
        dropout: Share = 0.1,
    ) -> None:
        """preset: paper is 12 blocks of width 1024 (the paper names no size), small 6 of 512, tiny
        4 of 128. layers, dim, heads, join: instead of the preset's.

        pretrained: folder or hub name of a Llama or Qwen2 whose blocks are where training starts;
        its size counts, its tokens do not. causal: no position sees a later one, of speech either.
        dropout: of what goes in, and of attention.

        Raises:
            RecipeError: a width that the heads do not divide, or no such pretrained transformer.
        """
        super().__init__()
        size = PRESETS[preset]
        width, many = dim or size.dim, heads or size.heads
        if width % (2 * many):
            raise RecipeError(
                f"prompted_transformer: {many} heads do not divide dim {width} into even parts; "
                "choose another dim or heads"
            )
        self.blocks = _blocks(
            blocks,
            pretrained,
            num_hidden_layers=layers or size.layers,
            hidden_size=width,
            intermediate_size=size.ffn * width // size.dim,
            num_attention_heads=many,
            num_key_value_heads=many,
            attention_dropout=dropout,
            initializer_range=width**-0.5,  # 0.02 is for wide ones: narrow ones would hardly start
        )
        self.norm: nn.Module = self.blocks.norm  # of what is read, not of the last layer alone
        self.blocks.norm = nn.Identity()
        config = self.blocks.config
        self.join, self.causal, width = join or size.join, causal, config.hidden_size
        self.spec = StackSpec(config.num_hidden_layers, width, frame_rate / self.join)
        self.adapt = nn.ModuleList([nn.LayerNorm(in_dim), nn.Linear(in_dim * self.join, width)])
        self.tasks, self.worded = list(tasks), {t: list(p) for t, p in prompts.items() if p}
        learned = [task for task in tasks if task not in self.worded]
        self.prompts = nn.ParameterDict({t: nn.Parameter(torch.randn(width)) for t in learned})
        self.words = nn.Embedding(BYTES, width) if self.worded else None
        self.texts = nn.ModuleDict({t: nn.Embedding(n, width) for t, n in text_sizes.items()})
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        frames: Frames,
        task: str,
        text: Tokens | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Sequences:
        packed = self.packed(frames, task, text, prompts)
        layers = self.run(packed.hidden, packed.valid, packed.prefix)
        speech, prompt, written = packed.sizes
        return Sequences(layers, speech, prompt, written, self.spec.frame_rate)

    def finish(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(hidden)
        return normed

    def packed(
        self,
        frames: Frames,
        task: str,
        text: Tokens | None = None,
        prompts: Sequence[str] | None = None,
        *,
        left: bool = False,
    ) -> Packed:
        """What the blocks read of each utterance, without gaps; left: padding stands before it."""
        parts = [self._speech(frames), self._prompt(task, len(frames.lengths), prompts)]
        if text is not None:
            parts.append((self.embed(text.ids, task), text.lengths))
        packed = pack(parts, left=left)
        return packed._replace(hidden=self.dropout(packed.hidden))

    def embed(self, ids: Tensor, task: str) -> Tensor:
        """Tokens of a task's text, (B, U) -> (B, U, D)."""
        hidden: Tensor = self.texts[task](ids)
        return hidden

    def run(
        self, hidden: Tensor, valid: Tensor, prefix: Tensor | None, cache: Any = None
    ) -> tuple[Tensor, ...]:
        """All layers at the positions of `hidden`, (B, T, D), after what a cache has seen.

        valid: (B, seen + T), true where a position is no padding. prefix: the same, true at speech
        and prompt; None if a cache has seen them. cache: it has seen these too afterwards.
        """
        from transformers.masking_utils import create_causal_mask

        # Numbered blocks see all of themselves; -1 is causal.
        blocks = None if prefix is None or self.causal else prefix.long() - 1
        mask = create_causal_mask(  # none at all where nothing is hidden
            config=self.blocks.config,
            inputs_embeds=hidden,
            attention_mask=valid.long(),
            past_key_values=cache,
            block_sequence_ids=blocks,
        )
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)[:, -hidden.shape[1] :]
        return self.all_blocks(hidden, mask, positions, cache)

    def all_blocks(
        self, hidden: Tensor, mask: Any, positions: Tensor, cache: Any
    ) -> tuple[Tensor, ...]:
        """What each block gives at the positions of `hidden`, (B, T, D).

        mask: (B, 1, T, seen + T), true is seen; none if all is. cache: as of `run`.
        """
        rotary = self.blocks.rotary_emb(hidden, position_ids=positions)
        layers = []
        for block in self.blocks.layers:  # the model's own way of keeping all of them takes longer
            hidden = block(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                position_embeddings=rotary,
            )
            layers.append(hidden)
        return tuple(layers)

    def _speech(self, frames: Frames) -> tuple[Tensor, Tensor]:
        norm, linear = self.adapt
        hidden = zero_padding(norm(frames.hidden), frames.lengths)
        lengths = (frames.lengths + self.join - 1).div(self.join, rounding_mode="floor")
        return linear(joined_frames(hidden, self.join)), lengths

    def _prompt(self, task: str, batch: int, given: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        if task not in self.tasks:
            raise RecipeError(f"no prompt for task '{task}'; {did_you_mean(task, self.tasks)}")
        if task not in self.worded:
            if given is not None:
                raise RecipeError(
                    f"task '{task}' was trained with one learned prompt, found '{given[0]}'; leave "
                    f"the prompt out, or train with tasks.{task}.prompts"
                )
            prompt: Tensor = self.prompts[task]
            ones = torch.ones(batch, dtype=torch.long, device=prompt.device)
            return prompt.expand(batch, 1, -1), ones
        assert self.words is not None
        known = self.worded[task]
        if given is None:  # in training any of them, otherwise the first
            many = len(known) if self.training else 1
            given = [known[i] for i in torch.randint(many, (batch,)).tolist()]
        rows = [prompt_ids(words) for words in given]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.words.weight.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        return self.words(ids), lengths


def prompt_ids(words: str) -> Tensor:
    """A prompt as the bytes of its words and their end, (N,) int64."""
    return torch.tensor([*words.encode(), BYTES - 1])


def _blocks(kind: str, pretrained: str | None, **sizes: Any) -> Any:
    """The decoder without its table of tokens."""
    import transformers

    if pretrained is None:
        config_class, model_class = {
            "llama": (transformers.LlamaConfig, transformers.LlamaModel),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2Model),
        }[kind]
        model = model_class(
            config_class(vocab_size=1, bos_token_id=None, eos_token_id=None, **sizes)
        )
    else:
        try:
            model = transformers.AutoModel.from_pretrained(
                pretrained, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise RecipeError(f"no pretrained transformer at '{pretrained}': {error}") from error
        if model.config.model_type not in ("llama", "qwen2"):
            raise RecipeError(
                f"'{pretrained}' is a {model.config.model_type}; expected a llama or a qwen2"
            )
    model.embed_tokens = None
    return model
