"""HuBERT, WavLM, wav2vec 2.0 and data2vec-audio: convolutions over samples, then a transformer.

transformers' own modules, driven layer by layer so that an utterance gives the same frames alone
and in a batch:

    samples ─ convolutions ─ projection ─ + positional convolution ─ block ─ ... ─ block ─ norm
              group norm       zero           zero again between        attend to valid
              over valid       the padding    data2vec's layers         frames only
              samples only

The published models with a group norm in their first convolution change by tens of percent on
valid frames when they are padded; `length_policy="padded"` computes them that way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from speechfuse.contracts import UpstreamPlan
from speechfuse.ops import all_valid, length_mask, zero_padding
from speechfuse.types import StackSpec, Waveforms
from speechfuse.upstreams.attention import ATTENTION_SECONDS, attention_mask
from speechfuse.upstreams.blocks import (
    Attend,
    Block,
    RelativeAttention,
    attend,
    narrow,
)
from speechfuse.upstreams.convolutions import activate, convolve, grouped, lay_out
from speechfuse.upstreams.products import linear
from speechfuse.upstreams.ragged import Ragged


def plan(config: Mapping[str, Any], sample_rate: int) -> UpstreamPlan:
    """Shapes, parameters and multiply-adds from a configuration (a parsed config.json)."""
    kind, dim, ffn = config["model_type"], config["hidden_size"], config["intermediate_size"]
    depth, heads = config["num_hidden_layers"], config["num_attention_heads"]
    parameters, macs, rate, channels = 0.0, 0.0, float(sample_rate), 1
    min_samples = 1
    widths, kernels, strides = config["conv_dim"], config["conv_kernel"], config["conv_stride"]
    everywhere = kind == "data2vec-audio" or config.get("feat_extract_norm") == "layer"
    for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
        rate /= stride
        weights = channels * kernel * width
        macs += rate * weights
        parameters += weights + (width if config.get("conv_bias") else 0)
        parameters += 2 * width if everywhere or i == 0 else 0
        channels = width
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        min_samples = (min_samples - 1) * stride + kernel
    normed = kind != "hubert" or config.get("feat_proj_layer_norm", True)
    parameters += (2 * channels if normed else 0) + channels * dim + dim
    macs += rate * channels * dim
    groups = config["num_conv_pos_embedding_groups"]
    if kind == "data2vec-audio":
        kernel, layers, gains = config["conv_pos_kernel_size"], config["num_conv_pos_embeddings"], 0
    else:
        kernel, layers, gains = config["num_conv_pos_embeddings"], 1, 0
        gains = 2 * dim if config.get("conv_pos_batch_norm") else kernel
    parameters += layers * (dim * (dim // groups) * kernel + dim) + gains
    # An even kernel gives one output too many, which is cut; it is still computed.
    extra = layers if kernel % 2 == 0 else 0
    macs += (rate * layers + extra / ATTENTION_SECONDS) * dim * (dim // groups) * kernel
    block = 4 * (dim * dim + dim) + (2 * dim * ffn + ffn + dim) + 4 * dim
    parameters += depth * block + 2 * dim
    attended = rate * ATTENTION_SECONDS
    macs += rate * depth * (4 * dim * dim + 2 * dim * ffn + 2 * attended * dim)
    if kind == "wavlm":
        parameters += depth * (heads + 8 * (dim // heads) + 8)
        parameters += config["num_buckets"] * heads if depth else 0  # the first block has them
        macs += rate * depth * 8 * dim
    if config.get("adapter_attn_dim") is not None:
        narrow = config["adapter_attn_dim"]
        parameters += depth * (2 * dim + 2 * narrow * dim + narrow + dim)
        macs += rate * depth * 2 * narrow * dim
    return UpstreamPlan(StackSpec(depth + 1, dim, rate), round(parameters), macs, min_samples)


class ConvTransformer(nn.Module):
    """One loaded model of the family and how to read its hidden states."""

    def __init__(
        self,
        model: nn.Module,
        preprocessor: Mapping[str, Any],
        length_policy: str,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.config: Any = model.config
        self.dtype = dtype  # of the large products of a frozen one
        self.compiled = compiled  # its blocks
        self._fast: list[Block] | None = None
        self.do_normalize = bool(preprocessor.get("do_normalize", True))
        self.padded = length_policy == "padded"
        self.attends_padding = self.padded and not preprocessor.get("return_attention_mask", False)

    def frames(self, samples: Tensor) -> Tensor:
        """Exact number of frames for these numbers of samples."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel).div(stride, rounding_mode="floor") + 1
        return samples

    def states(self, wav: Waveforms, *, frozen: bool = False) -> Iterator[Tensor]:
        """Every hidden state in order, (B, T, D); padding holds anything.

        frozen: no gradient is asked for, now or later.
        """
        return self._frozen(wav) if frozen and not self.padded else self._with_modules(wav)

    def _frozen(self, wav: Waveforms) -> Iterator[Tensor]:
        """The same without padding, and with what transformers' modules do put together."""
        encoder, stable = (
            self.model.encoder,
            bool(getattr(self.config, "do_stable_layer_norm", False)),
        )
        blocks = self._prepared()
        ragged = Ragged(self.frames(wav.lengths), together=wav.samples.is_cuda)
        hidden = self._features(wav, ragged)
        hidden = hidden + ragged.along_time(self._along_time, hidden)
        hidden = hidden if stable else encoder.layer_norm(hidden)
        yield ragged.padded(hidden)
        if not blocks:
            return
        wavlm = self.config.model_type == "wavlm"
        attending: Attend = attend
        if wavlm:
            attending = RelativeAttention(encoder.layers[0].attention, max(ragged.sizes))
        last = self.config.num_hidden_layers - 1
        for index, block in enumerate(blocks):
            hidden = block(hidden, ragged, attending)
            normed = encoder.layer_norm(hidden) if stable and index == last else hidden
            yield ragged.padded(normed)

    def _prepared(self) -> list[Block]:
        """The blocks; weights are laid out as the products read them, once."""
        if self._fast is None:
            embed = self.model.encoder.pos_conv_embed
            if not hasattr(embed, "layers"):
                if is_parametrized(embed.conv):
                    remove_parametrizations(embed.conv, "weight")
                lay_out(embed.conv, self.dtype)
            first, *upper = self.model.feature_extractor.conv_layers
            lay_out(first.conv, torch.float32)
            for layer in upper:
                lay_out(layer.conv, self.dtype)
            layers, compiled = self.model.encoder.layers, self.compiled
            self._fast = [_block(layer, self.config, compiled) for layer in layers]
            narrow(self._fast, self.dtype)
        return self._fast

    def _features(self, wav: Waveforms, ragged: Ragged) -> Tensor:
        """What the positional convolution reads, (N, D)."""
        samples, layers = self._normalized(wav), self.model.feature_extractor.conv_layers
        if ragged.together:
            features = ragged.rows(convolve(layers, samples, wav.lengths))
        else:
            clips = zip(samples, wav.lengths, strict=True)
            features = torch.cat([convolve(layers, s[None, :n], n[None])[0] for s, n in clips])
        projection = self.model.feature_projection
        features = features.float()
        if hasattr(projection, "layer_norm"):
            features = projection.layer_norm(features)
        return linear(projection.projection, features)

    def _along_time(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """The positional convolution(s) of utterances side by side, (B, T, D)."""
        embed = self.model.encoder.pos_conv_embed
        if hasattr(embed, "layers"):
            for layer in embed.layers:
                hidden = layer(hidden.transpose(1, 2)).transpose(1, 2)
                hidden = hidden if valid is None else hidden * valid[..., None]
            return hidden
        norm = getattr(embed, "batch_norm", None)
        if norm is not None:
            hidden = norm(hidden.transpose(1, 2)).transpose(1, 2)
            hidden = hidden if valid is None else hidden * valid[..., None]
        return activate(embed.activation, grouped(embed.conv, hidden))

    def _with_modules(self, wav: Waveforms) -> Iterator[Tensor]:
        model, encoder = self.model, self.model.encoder
        lengths = self.frames(wav.lengths)
        features = self._convolve(self._normalized(wav), wav.lengths).transpose(1, 2)
        projected = model.feature_projection(features)
        hidden: Tensor = projected[0] if isinstance(projected, tuple) else projected
        if self.attends_padding:
            lengths = torch.full_like(lengths, hidden.shape[1])
        hidden = zero_padding(hidden, lengths)
        hidden = hidden + self._positions(hidden, lengths)
        stable = bool(getattr(self.config, "do_stable_layer_norm", False))
        if not stable:
            hidden = encoder.layer_norm(hidden)
        yield hidden
        blocks = self._wavlm_blocks if self.config.model_type == "wavlm" else self._blocks
        last = self.config.num_hidden_layers - 1  # blocks above the last one needed are not here
        for index, state in enumerate(blocks(hidden, lengths)):
            yield encoder.layer_norm(state) if stable and index == last else state

    def _normalized(self, wav: Waveforms) -> Tensor:
        """Zero mean and unit variance over the valid samples, if the model was trained so."""
        if not self.do_normalize:
            return wav.samples
        size = wav.samples.shape[1]
        lengths = torch.full_like(wav.lengths, size) if self.attends_padding else wav.lengths
        count = lengths[:, None].to(wav.samples.dtype)
        mask = length_mask(lengths, size)
        mean = (wav.samples * mask).sum(1, keepdim=True) / count
        centred = (wav.samples - mean) * mask
        variance = centred.square().sum(1, keepdim=True) / count
        return centred / (variance + 1e-7).sqrt()

    def _convolve(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """The convolutions over samples: (B, S) -> (B, C, T)."""
        hidden = samples[:, None]
        for layer in self.model.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm) and not self.padded:
                hidden = layer.conv(hidden)
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                valid = (lengths - kernel).div(stride, rounding_mode="floor") + 1
                hidden = layer.activation(_masked_instance_norm(hidden, valid, norm))
            else:
                hidden = layer(hidden)
        return hidden

    def _positions(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The positional convolution(s), padding set to zero before each."""
        embed = self.model.encoder.pos_conv_embed
        if not hasattr(embed, "layers"):
            norm = getattr(embed, "batch_norm", None)
            if norm is None:
                positions: Tensor = embed(hidden)
                return positions
            hidden = zero_padding(norm(hidden.transpose(1, 2)).transpose(1, 2), lengths)
            convolved: Tensor = embed.padding(embed.conv(hidden.transpose(1, 2)))
            activated: Tensor = embed.activation(convolved)
            return activated.transpose(1, 2)
        for layer in embed.layers:
            hidden = layer(hidden.transpose(1, 2)).transpose(1, 2)
            hidden = hidden if self.padded else zero_padding(hidden, lengths)
        return hidden

    def _blocks(self, hidden: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        mask = attention_mask(self.config, hidden, lengths)
        for layer in self.model.encoder.layers:
            hidden = layer(hidden, attention_mask=mask)
            yield hidden

    def _wavlm_blocks(self, hidden: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """WavLM's blocks; its attention adds a relative position bias that the input gates."""
        layers = self.model.encoder.layers
        if not len(layers):
            return
        frames = hidden.shape[1]
        bias = layers[0].attention.compute_bias(frames, frames)  # (heads, T, T), shared by all
        valid = length_mask(lengths, frames)[:, None, None]
        hole = None if all_valid(valid) else torch.where(valid, 0.0, -torch.inf)
        stable = bool(self.config.do_stable_layer_norm)
        for layer in layers:
            if stable:
                hidden = hidden + _wavlm_attention(
                    layer.attention, layer.layer_norm(hidden), bias, hole
                )
                hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
            else:
                hidden = layer.layer_norm(
                    hidden + _wavlm_attention(layer.attention, hidden, bias, hole)
                )
                hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
            yield hidden


def _block(layer: Any, config: Any, compiled: bool) -> Block:
    forward = layer.feed_forward
    return Block(
        attention=layer.attention,
        norm=layer.layer_norm,
        up=forward.intermediate_dense,
        activation=forward.intermediate_act_fn,
        down=forward.output_dense,
        final_norm=layer.final_layer_norm,
        norm_first=bool(getattr(config, "do_stable_layer_norm", False)),
        adapter=getattr(layer, "adapter_layer", None),
        compiled=compiled,
    )


def _masked_instance_norm(hidden: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm with one channel a group, over the valid positions only: (B, C, T).

    In float32 even where training is mixed: a bfloat16 cannot count a second of positions.
    """
    hidden = hidden.float()
    mask = length_mask(lengths, hidden.shape[2])[:, None].to(hidden.dtype)
    count = lengths[:, None, None].to(hidden.dtype)
    mean = (hidden * mask).sum(2, keepdim=True) / count
    centred = (hidden - mean) * mask
    variance = centred.square().sum(2, keepdim=True) / count
    scale = norm.weight[:, None] * (variance + norm.eps).rsqrt()
    return centred * scale + norm.bias[:, None]


def _wavlm_attention(attention: Any, hidden: Tensor, bias: Tensor, hole: Tensor | None) -> Tensor:
    """Attention with a gated relative position bias (Chen et al. 2022, eq. 4-6)."""
    batch, frames, _ = hidden.shape
    by_head = hidden.view(batch, frames, attention.num_heads, attention.head_dim).transpose(1, 2)
    gates = attention.gru_rel_pos_linear(by_head).view(*by_head.shape[:-1], 2, 4).sum(-1)
    update, reset = gates.sigmoid().chunk(2, dim=-1)
    gate = update * (reset * attention.gru_rel_pos_const - 1.0) + 2.0  # (B, heads, T, 1)
    score = gate * bias
    if hole is not None:
        score = score + hole

    def heads(projection: nn.Module) -> Tensor:
        projected: Tensor = projection(hidden)
        return projected.view(batch, frames, attention.num_heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj), attn_mask=score
    )
    attended: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(batch, frames, -1))
    return attended
