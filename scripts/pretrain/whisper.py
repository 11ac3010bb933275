"""Pretrain the small Whisper: transcribe synthetic speech (Radford et al. 2022, arXiv:2212.04356).

    python scripts/pretrain/whisper.py --data pretrain-data --out models/synthetic-whisper

Encoder and decoder of the Whisper architecture, characters instead of sub-words, and a CTC branch
beside the decoder (Watanabe et al. 2017), without which attention takes long to find the text.
Clips are followed by 0 to 3 s of silence, so that the encoder needs no 30 s. Only the encoder is
kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
from corpus import HELD_OUT, Speech, learning_rate
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from speechfuse.audio import pad_clips
from speechfuse.ops import zero_padding
from speechfuse.types import Waveforms
from speechfuse.upstreams.whisper import WhisperStates

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
START, END, PAD = len(LETTERS) + 1, len(LETTERS) + 2, 0  # 0 is CTC's blank, too
CONFIG = WhisperConfig(
    d_model=192,
    encoder_layers=6,
    encoder_attention_heads=4,
    encoder_ffn_dim=768,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=768,
    vocab_size=len(LETTERS) + 3,
    max_target_positions=256,
    pad_token_id=PAD,
    bos_token_id=START,
    eos_token_id=END,
    decoder_start_token_id=START,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)
PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_value": 0.0,
}


class Transcriber(nn.Module):
    """Encoder, decoder and CTC branch."""

    def __init__(self) -> None:
        super().__init__()
        encoder = WhisperEncoder(CONFIG)
        self.states = WhisperStates(encoder, PREPROCESSOR, pad=0.0, long="refuse")
        self.decoder = WhisperDecoder(CONFIG)
        self.ctc = nn.Linear(CONFIG.d_model, len(LETTERS) + 1)

    def encode(self, wav: Waveforms, silence: float) -> tuple[Tensor, Tensor]:
        self.states.silence = round(silence * 16000 / 320) * 320
        with torch.autocast("cpu", torch.bfloat16):
            *_, hidden = self.states.states(wav)
        lengths = self.states.frames(wav.lengths)
        return zero_padding(hidden.float(), lengths), lengths

    def losses(self, wav: Waveforms, texts: list[str], silence: float) -> tuple[Tensor, Tensor]:
        hidden, lengths = self.encode(wav, silence)
        ids = [torch.tensor([LETTERS.index(c) + 1 for c in text]) for text in texts]
        sizes = torch.tensor([len(row) for row in ids])
        log_probs = self.ctc(hidden).log_softmax(-1).transpose(0, 1)
        ctc = F.ctc_loss(log_probs, torch.cat(ids), lengths, sizes, zero_infinity=True)
        inputs = [torch.cat([torch.tensor([START]), row]) for row in ids]
        targets = [torch.cat([row, torch.tensor([END])]) for row in ids]
        tokens = nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=PAD)
        wanted = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self.decoder(input_ids=tokens, encoder_hidden_states=hidden)
            scores = decoded.last_hidden_state @ self.decoder.embed_tokens.weight.T
        attention = F.cross_entropy(scores.float().flatten(0, 1), wanted.flatten())
        return ctc, attention

    @torch.no_grad()
    def transcribe(self, wav: Waveforms) -> list[str]:
        """Greedy CTC."""
        hidden, lengths = self.encode(wav, 1.0)
        best = self.ctc(hidden).argmax(-1)
        return [
            "".join(LETTERS[k - 1] for k in row[:n].unique_consecutive().tolist() if k)
            for row, n in zip(best, lengths.tolist(), strict=True)
        ]


def batches(speech: Speech, seconds: float, random: np.random.Generator) -> list[list[int]]:
    """All training utterances once, in batches of similar length and `seconds` of padded audio."""
    rows = speech.rows[:-HELD_OUT]
    order = np.argsort([row["length"] * random.uniform(0.9, 1.1) for row in rows])
    found: list[list[int]] = [[]]
    for index in order.tolist():
        longest = max([rows[i]["length"] for i in found[-1]] + [rows[index]["length"]])
        if longest * (len(found[-1]) + 1) > seconds * 16000:
            found.append([])
        found[-1].append(index)
    random.shuffle(found)
    return found


def load(speech: Speech, indices: list[int]) -> tuple[Waveforms, list[str]]:
    rows = [speech.rows[i] for i in indices]
    clips = [speech.clip(row["start"], row["length"]) for row in rows]
    return pad_clips(clips), [row["text"] for row in rows]


def held_out(model: Transcriber, speech: Speech) -> dict[str, float]:
    model.eval()
    said, heard = [], []
    indices = list(range(len(speech.rows) - HELD_OUT, len(speech.rows)))
    for part in np.array_split(indices, 20):
        wav, texts = load(speech, part.tolist())
        said += texts
        heard += model.transcribe(wav)
    model.train()
    return {"wer": jiwer.wer(said, heard), "cer": jiwer.cer(said, heard)}


def save(
    model: Transcriber, speech: Speech, options: argparse.Namespace, seconds: float
) -> dict[str, float]:
    """Write the encoder in the Hugging Face layout; its error rates on held-out speech."""
    scores = held_out(model, speech)
    record = {
        "hours": len(speech.clean) / 16000 / 3600,
        "options": {k: str(v) for k, v in vars(options).items()},
        "held_out": scores,
        "seconds": seconds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"encoder.{name}": tensor.half().contiguous()
        for name, tensor in model.states.model.state_dict().items()
    }
    save_file(tensors, options.out / "model.safetensors", metadata={"format": "pt"})
    config = CONFIG.to_dict() | {"architectures": ["WhisperModel"], "dtype": "float16"}
    (options.out / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    (options.out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--stop", type=int, help="step of this schedule after which to stop")
    parser.add_argument("--batch-seconds", type=float, default=80.0)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    speech, random = Speech(options.data), np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    model = Transcriber().train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    queue: list[list[int]] = []
    history, began = [], time.time()
    for step in range(options.stop or options.steps):
        queue = queue or batches(speech, options.batch_seconds, random)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        wav, texts = load(speech, queue.pop())
        ctc, attention = model.losses(wav, texts, float(random.choice([0.0, 0.5, 1.0, 3.0])))
        optimizer.zero_grad(set_to_none=True)
        (0.5 * ctc + 0.5 * attention).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append((float(ctc.detach()), float(attention.detach())))
        if (step + 1) % 100 == 0:
            recent = np.mean(history[-100:], axis=0)
            seconds = time.time() - began
            more = save(model, speech, options, seconds) if (step + 1) % 1000 == 0 else ""
            print(
                f"{step + 1}/{options.steps} ctc {recent[0]:.3f} attention {recent[1]:.3f} "
                f"{seconds:.0f} s {more}",
                flush=True,
            )
    record = save(model, speech, options, time.time() - began)
    print(record)


if __name__ == "__main__":
    main()
