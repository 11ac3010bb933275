"""Whisper's encoder without the 30 seconds (Radford et al. 2022, arXiv:2212.04356).

    samples ─ silence ─ log-mel ─ convolution ─ convolution ─ + positions ─ block ─ ... ─ norm
              (pad)     as in the   padding set to zero                      attend to valid
                        30 s mode   after each                               frames only

Whisper was trained on clips padded to 30 s. A clip of 3 s then costs ten times what it has to;
`pad` sets how much silence follows each clip instead. The spectrogram equals that of the 30 s
mode; the output is cut to ceil(samples / 320) frames. A longer clip is cut into windows that are
encoded each by itself and joined again, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechfuse.audio import log_mel, mel_macs
from speechfuse.contracts import UpstreamPlan
from speechfuse.errors import DataError
from speechfuse.ops import exporting, length_mask, longest, pad_frames, zero_padding
from speechfuse.types import StackSpec, Waveforms
from speechfuse.upstreams.attention import ATTENTION_SECONDS, attention_mask
from speechfuse.upstreams.blocks import Block, attend, narrow
from speechfuse.upstreams.ragged import Ragged

Pad = float | Literal["30s"]


def plan(config: Mapping[str, Any], preprocessor: Mapping[str, Any], pad: Pad) -> UpstreamPlan:
    """Shapes, parameters and multiply-adds from a configuration (a parsed config.json)."""
    dim, ffn, mels = config["d_model"], config["encoder_ffn_dim"], config["num_mel_bins"]
    depth, positions = config["encoder_layers"], config["max_source_positions"]
    window, hop = preprocessor.get("n_fft", 400), preprocessor.get("hop_length", 160)
    sample_rate = preprocessor.get("sampling_rate", 16000)
    rate = sample_rate / hop / 2
    parameters = 3 * mels * dim + dim + 3 * dim * dim + dim + positions * dim + 2 * dim
    parameters += depth * (4 * dim * dim + 3 * dim + 2 * dim * ffn + ffn + dim + 4 * dim)
    seconds = positions / rate if pad == "30s" else ATTENTION_SECONDS + pad
    macs = 2 * rate * mel_macs(mels, window)
    macs += 2 * rate * 3 * mels * dim + rate * 3 * dim * dim
    macs += rate * depth * (4 * dim * dim + 2 * dim * ffn + 2 * rate * seconds * dim)
    silence = seconds if pad == "30s" else float(pad)
    macs *= seconds / ATTENTION_SECONDS
    return UpstreamPlan(StackSpec(depth + 1, dim, rate), parameters, macs, 1, silence)


class WhisperStates(nn.Module):
    """One loaded Whisper encoder and how to read its hidden states."""

    def __init__(
        self,
        encoder: nn.Module,
        preprocessor: Mapping[str, Any],
        pad: Pad,
        long: str,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = encoder
        self.config: Any = encoder.config
        self.window = int(preprocessor.get("n_fft", 400))
        self.hop = int(preprocessor.get("hop_length", 160))
        self.stride = 2 * self.hop  # samples a frame
        self.sample_rate = int(preprocessor.get("sampling_rate", 16000))
        self.pad, self.long, self.dtype, self.compiled = pad, long, dtype, compiled
        self._fast: list[Block] | None = None
        positions = int(encoder.config.max_source_positions)  # type: ignore[union-attr, arg-type]
        self.limit = positions * self.stride  # samples, pad included
        silence = 0 if pad == "30s" else -(-round(pad * self.sample_rate) // self.stride)
        self.silence = silence * self.stride  # samples
        if self.silence >= self.limit:
            raise DataError(f"a pad of {pad} s leaves no room in {self.limit} samples")

    def frames(self, samples: Tensor) -> Tensor:
        """Exact number of frames for these numbers of samples."""
        return (samples + self.stride - 1).div(self.stride, rounding_mode="floor")

    def states(self, wav: Waveforms, *, frozen: bool = False) -> Iterator[Tensor]:
        """Every hidden state in order, (B, T, D); padding holds anything.

        frozen: no gradient is asked for, now or later.
        """
        room = self.limit - self.silence
        if exporting() or int(wav.lengths.max()) <= room:
            bound = (wav.samples.shape[1] + self.stride - 1) // self.stride
            size = longest(self.frames(wav.lengths), bound)
            for hidden in self._encode(wav, frozen):
                yield hidden[:, :size]
            return
        if self.long == "refuse":
            raise DataError(
                f"a clip of {int(wav.lengths.max()) / self.sample_rate:.1f} s is longer than the "
                f"{room / self.sample_rate:.1f} s that whisper takes with this pad; cut it, or set "
                "long: window"
            )
        owner, windows = _windows(wav, room)
        sizes = self.frames(windows.lengths).tolist()
        for hidden in self._encode(windows, frozen):
            pieces: list[list[Tensor]] = [[] for _ in wav.lengths]
            for utterance, window, size in zip(owner, hidden, sizes, strict=True):
                pieces[utterance].append(window[:size])
            yield pad_frames([torch.cat(clip) for clip in pieces])

    def _encode(self, wav: Waveforms, frozen: bool) -> Iterator[Tensor]:
        encoder = self.model
        mel, lengths = self._log_mel(wav)
        hidden = _zero_channels(F.gelu(encoder.conv1(mel)), lengths)
        lengths = (lengths + 1).div(2, rounding_mode="floor")
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = zero_padding(hidden, lengths)
        if frozen:
            yield from self._frozen(hidden, lengths)
            return
        mask = attention_mask(self.config, hidden, lengths)
        yield hidden
        last = self.config.encoder_layers - 1  # blocks above the last one needed are not here
        for index, layer in enumerate(encoder.layers):
            hidden = layer(hidden, mask)
            yield encoder.layer_norm(hidden) if index == last else hidden

    def _frozen(self, hidden: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """The blocks without padding."""
        encoder = self.model
        if self._fast is None:
            self._fast = [_block(layer, self.compiled) for layer in encoder.layers]
            narrow(self._fast, self.dtype)
        ragged = Ragged(lengths, together=hidden.is_cuda)
        yield hidden
        rows = ragged.rows(hidden)
        last = self.config.encoder_layers - 1
        for index, block in enumerate(self._fast):
            rows = block(rows, ragged, attend)
            yield ragged.padded(encoder.layer_norm(rows) if index == last else rows)

    def _log_mel(self, wav: Waveforms) -> tuple[Tensor, Tensor]:
        """Whisper's spectrogram (B, M, T) of clip and silence, zero beyond; T of each clip."""
        heard = (
            torch.full_like(wav.lengths, self.limit)
            if self.pad == "30s"
            else wav.lengths + self.silence
        )
        lengths = (heard + self.hop - 1).div(self.hop, rounding_mode="floor")
        half = self.window // 2
        bound = self.limit if self.pad == "30s" else wav.samples.shape[1] + self.silence
        frames = longest(lengths, (bound + self.hop - 1) // self.hop)
        # Two frames more than are kept: the loudest one may lie just past the end of a clip.
        size = (frames + 2 if exporting() else max(frames, half // self.hop) + 2) * self.hop + half
        samples = F.pad(
            wav.samples, (0, size if exporting() else max(0, size - wav.samples.shape[1]))
        )
        samples = samples[:, :size]
        mirrored = samples[:, 1 : half + 1].flip(1)
        mel = log_mel(
            torch.cat([mirrored, samples], dim=1), self.config.num_mel_bins, self.window, self.hop
        )
        loudest = mel.amax(dim=(1, 2), keepdim=True)
        mel = (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0
        return _zero_channels(mel[..., :frames], lengths), lengths


def _block(layer: Any, compiled: bool) -> Block:
    return Block(
        attention=layer.self_attn,
        norm=layer.self_attn_layer_norm,
        up=layer.fc1,
        activation=layer.activation_fn,
        down=layer.fc2,
        final_norm=layer.final_layer_norm,
        norm_first=True,
        compiled=compiled,
    )


def _zero_channels(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Zero beyond each utterance's length, as a convolution's own padding is: (B, C, T)."""
    return hidden * length_mask(lengths, hidden.shape[2])[:, None].to(hidden.dtype)


def _windows(wav: Waveforms, room: int) -> tuple[list[int], Waveforms]:
    """Clips cut into pieces of at most `room` samples, and the clip that each belongs to."""
    owner, pieces = [], []
    for utterance, (samples, length) in enumerate(
        zip(wav.samples, wav.lengths.tolist(), strict=True)
    ):
        for piece in samples[:length].split(room):
            owner.append(utterance)
            pieces.append(piece)
    lengths = torch.tensor([len(p) for p in pieces], device=wav.lengths.device)
    samples = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    return owner, Waveforms(samples, lengths, wav.sample_rate)
