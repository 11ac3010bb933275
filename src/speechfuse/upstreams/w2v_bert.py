"""W2v-BERT 2.0: a conformer over stacked filterbank frames (arXiv:2312.05187).

The features are those of transformers' own extractor, clip by clip, so that they equal what the
model was trained on; two frames of 10 ms make one of 20 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechfuse.audio import power_by_products, waves
from speechfuse.contracts import UpstreamPlan
from speechfuse.ops import (
    exporting,
    joined_frames,
    length_mask,
    masked_mean,
    pad_frames,
    zero_padding,
)
from speechfuse.types import StackSpec, Waveforms
from speechfuse.upstreams.attention import ATTENTION_SECONDS, attention_mask

_WINDOW, _HOP, _STRIDE = 400, 160, 2  # samples, samples, frames: Kaldi's 25 ms and 10 ms
_TRANSFORMED, _EMPHASIS, _FLOOR = 512, 0.97, 1.192092955078125e-07  # as its extractor has them


def plan(config: Mapping[str, Any]) -> UpstreamPlan:
    """Shapes, parameters and multiply-adds from a configuration (a parsed config.json)."""
    dim, ffn, width = (
        config["hidden_size"],
        config["intermediate_size"],
        config["feature_projection_input_dim"],
    )
    depth, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kernel, positions = config["conv_depthwise_kernel_size"], config["position_embeddings_type"]
    rate = 16000 / _HOP / _STRIDE
    attended = rate * ATTENTION_SECONDS
    feed_forward = 2 * (2 * dim * ffn + ffn + dim)
    attention = 4 * (dim * dim + dim)
    products = 2 * attended * dim
    if positions == "relative_key":
        reach = config["left_max_position_embeddings"] + config["right_max_position_embeddings"]
        attention += (reach + 1) * (dim // heads)
        products += attended * dim
    elif positions == "relative":
        attention += dim * dim + 2 * dim
        products += 2 * attended * dim + 2 * dim * dim
    convolution = 3 * dim * dim + kernel * dim
    block = feed_forward + attention + convolution + 2 * dim + 2 * dim + 4 * 2 * dim
    parameters = 2 * width + width * dim + dim + depth * block
    macs = width * dim + depth * (4 * dim * ffn + 4 * dim * dim + products + convolution)
    shortest = _WINDOW + (_STRIDE - 1) * _HOP
    return UpstreamPlan(StackSpec(depth + 1, dim, rate), parameters, rate * macs, shortest)


class W2vBert(nn.Module):
    """One loaded model and how to read its hidden states."""

    def __init__(
        self, model: nn.Module, preprocessor: Mapping[str, Any], dtype: torch.dtype = torch.float32
    ) -> None:
        import transformers

        super().__init__()
        self.model: Any = model
        self.config: Any = model.config
        self.dtype = dtype  # of the products of a frozen one's blocks
        known = {"feature_size", "num_mel_bins", "padding_value", "stride"}
        options = {key: value for key, value in preprocessor.items() if key in known}
        make: Any = transformers.SeamlessM4TFeatureExtractor
        self.extractor: Any = make(**options)

    def frames(self, samples: Tensor) -> Tensor:
        """Exact number of frames for these numbers of samples."""
        mel = (samples - _WINDOW).div(_HOP, rounding_mode="floor") + 1
        return mel.div(_STRIDE, rounding_mode="floor")

    def states(self, wav: Waveforms, *, frozen: bool = False) -> Iterator[Tensor]:
        """Every hidden state in order, (B, T, D); padding holds anything.

        frozen: no gradient is asked for, now or later.
        """
        lengths = self.frames(wav.lengths)
        features = self._in_graph(wav) if exporting() else self._of_clips(wav, lengths)
        hidden = zero_padding(self.model.feature_projection(features)[0], lengths)
        mask = attention_mask(self.config, hidden, lengths)
        valid = None if mask is None else length_mask(lengths, hidden.shape[1])
        embed = self.model.encoder.embed_positions
        relative = None if embed is None else embed(hidden)
        yield hidden
        mixed, device = frozen and self.dtype != torch.float32, hidden.device.type
        for layer in self.model.encoder.layers:
            with torch.autocast(device, self.dtype, enabled=mixed):
                hidden = layer(
                    hidden.float(),  # which its first norm reads
                    attention_mask=mask,
                    relative_position_embeddings=relative,
                    conv_attention_mask=valid,
                )
            yield hidden

    def _of_clips(self, wav: Waveforms, lengths: Tensor) -> Tensor:
        """What the projection reads, (B, T, 160), by transformers' extractor."""
        sizes = zip(wav.samples, wav.lengths.tolist(), lengths.tolist(), strict=True)
        return pad_frames([self._features(samples[:n])[:frames] for samples, n, frames in sizes])

    def _in_graph(self, wav: Waveforms) -> Tensor:
        """The same as products: log-mel frames, of each clip with zero mean and unit variance.

        Taking the mean from a window, pre-emphasis, taper and Fourier transform are linear: one
        matrix.
        """
        emphasis = np.eye(_WINDOW) - _EMPHASIS * np.eye(_WINDOW, k=-1)
        emphasis[0, 0] = 1 - _EMPHASIS
        prepared = self.extractor.window[:, None] * (emphasis @ (np.eye(_WINDOW) - 1 / _WINDOW))
        spectrum = torch.from_numpy(prepared.T @ waves(_WINDOW, _TRANSFORMED))
        power = power_by_products(2.0**15 * wav.samples, spectrum, _HOP)
        mel = (power @ torch.from_numpy(self.extractor.mel_filters)).clamp_min(_FLOOR).log()
        count = (wav.lengths - _WINDOW).div(_HOP, rounding_mode="floor") + 1
        centred = zero_padding(mel - masked_mean(mel, count)[:, None], count)
        variance = centred.square().sum(1) / (count - 1)[:, None]
        scaled = centred / (variance + 1e-7).sqrt()[:, None]
        return joined_frames(scaled.float(), _STRIDE)

    def _features(self, samples: Tensor) -> Tensor:
        found = self.extractor(samples.cpu().numpy(), sampling_rate=16000, return_tensors="pt")
        features: Tensor = found["input_features"][0]
        return features.to(samples.device, torch.float32)
