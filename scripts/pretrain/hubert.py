"""Pretrain the small HuBERT: masked prediction of cluster ids (Hsu et al. 2021, arXiv:2106.07447).

    python scripts/pretrain/hubert.py --data pretrain-data --out models/synthetic-hubert

Targets are an ensemble of quantisations (Hsu et al. 2021, section II-C), so that no task's part of
the signal is thrown away. Two change from frame to frame: clusters of MFCCs normalised for each
utterance, a sound without its voice, and clusters of MFCCs as they are. The others are the same for
a whole utterance: principal components of the mean and standard deviation of its MFCCs, a voice
without its sounds, and numbers of its pitch and of the size and speed of its changes, a way of
speaking; each in eight levels (product quantisation). They all come from clean speech and the model
hears the same speech in a room with noise (as in WavLM's denoising, Chen et al. 2022), so that it
learns to listen through them. In a second round, if there is one, a block of the first takes the
place of the normalised MFCCs. A frame is 25 ms: the strides multiply to 400 samples, which are read
as loud as they are.

A mask hides 75 ms, about one sound. In this fast speech a cluster says next to nothing of the one
100 ms later (4.21 of 4.49 nats are left), and masks of 200 ms taught nothing in thousands of steps.

With the usual first convolution of 10 samples and random weights, all of a small budget goes into
learning what a spectrum is. So the first convolution is long and starts as a bank of mel-spaced
Gabor filters (Zeghidour et al. 2018, arXiv:1711.01161), and before the first round the
convolutions alone learn to predict the log-mel spectrum and the pitch of what they hear. Then they
rest: learning on, they unlearned it in the first hundred steps, and the prediction of visible
frames stood still.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from corpus import HELD_OUT, Speech, learning_rate
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from speechfuse.audio import log_mel

HOP, FIELD = 400, 606  # samples a frame, and those that it sees
WINDOW, MELS, CEPSTRA = 400, 40, 13
FAST, VOICES, SLOW, LEVELS = 2, 8, 17, 8  # targets of a frame, of an utterance
LOSSES = ("masked clusters", "masked levels", "visible clusters", "visible levels")
CROP = 64000  # samples, 4 s
MASK_LENGTH, MASK_START = 3, 0.07  # frames, chance that a frame starts a mask
CONFIG = HubertConfig(
    hidden_size=192,
    num_hidden_layers=8,
    num_attention_heads=3,
    intermediate_size=576,
    conv_dim=(160, 192, 192, 192),
    conv_kernel=(256, 2, 2, 2),
    conv_stride=(50, 2, 2, 2),
    conv_bias=True,
    feat_extract_norm="layer",
    num_conv_pos_embeddings=48,
    num_conv_pos_embedding_groups=16,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
    layerdrop=0.0,
    final_dropout=0.0,
    # Norms come after each block. Before it, nothing held the size of what the blocks add to: in
    # 2,500 steps it grew to 170, blocks added 1, and all layers were one.
    do_stable_layer_norm=False,
)


def spectrum(samples: Tensor) -> Tensor:
    """Log-mel energies of 25 ms windows on the middle of each frame's field: (B, T, MELS)."""
    padded = F.pad(samples, (WINDOW // 2 - FIELD // 2, 640))
    return log_mel(padded, MELS, WINDOW, HOP).transpose(1, 2)


def mfcc(samples: Tensor) -> Tensor:
    """Cepstra of one recording, high ones with less weight: (T, CEPSTRA).

    Energies are floored: what lies 50 dB under full scale is silence, whatever its exact level.
    """
    index, order = torch.arange(MELS), torch.arange(CEPSTRA)
    basis = torch.cos(torch.pi / MELS * (index[:, None] + 0.5) * order)
    cepstra: Tensor = spectrum(samples[None])[0].clamp_min(-5.0) @ (basis / (1 + order) ** 0.25)
    return cepstra


def pitch(samples: Tensor) -> Tensor:
    """Log of the best period's frequency (70 to 400 Hz) and how periodic the sound is: (T, 2)."""
    size = 1024
    window = torch.hann_window(size)
    frames = F.pad(samples, (size // 2 - FIELD // 2, size)).unfold(0, size, HOP)
    frames = (frames - frames.mean(1, keepdim=True)) * window

    def correlation(rows: Tensor) -> Tensor:
        power = torch.fft.rfft(rows, 2 * size).abs().square()
        found: Tensor = torch.fft.irfft(power)[..., : 16000 // 70]
        return found

    shape, found = correlation(window), correlation(frames)
    found = found / (found[:, :1] + 1e-4) / (shape / shape[0])
    strength, period = found[:, 40:].max(1)
    return torch.stack([torch.log(16000 / (period + 40.0)), strength.clamp(0, 1)], dim=1)


@torch.no_grad()
def features(speech: Speech, model: HubertModel | None, block: int) -> NDArray[np.float32]:
    """MFCCs and pitch, or a block's output, of all clean speech: one row every HOP samples."""
    piece, margin = 30 * 16000 // HOP, 20  # frames
    total = len(speech.clean) // HOP
    found = []
    for at in range(0, total, piece):
        first, last = max(0, at - margin), min(total, at + piece + margin)
        samples = speech.clip(first * HOP, (last - first) * HOP, clean=True)
        if model is None:
            cepstra, tones = mfcc(samples), pitch(samples)
            frames = min(len(cepstra), len(tones))
            rows = torch.cat([cepstra[:frames], tones[:frames]], dim=1)
        else:
            padded = F.pad(samples, (0, FIELD - HOP))[None]
            with torch.autocast("cpu", torch.bfloat16):
                rows = model(padded, output_hidden_states=True).hidden_states[block][0].float()
        found.append(rows[at - first : at - first + min(piece, total - at)].numpy())
    return np.concatenate(found).astype(np.float32)


def first_targets(speech: Speech, folder: Path, count: int) -> NDArray[np.int64]:
    """Those of a first round, which are the same for every encoder: kept beside the speech."""
    kept = folder / f"targets-{count}.npy"
    if not kept.is_file():
        np.save(kept, targets(speech, None, 0, count).astype(np.uint8))
    ids: NDArray[np.int64] = np.load(kept).astype(np.int64)
    return ids


def targets(speech: Speech, model: HubertModel | None, block: int, count: int) -> NDArray[np.int64]:
    """What each frame is to predict, (T, FAST + SLOW): cluster ids, then levels.

    count: clusters. model: its block's output stands for the MFCCs in the clusters of sounds.
    """
    heard = features(speech, None, 0)
    spectra = heard[:, :CEPSTRA]
    scale = spectra[::97].std(0)
    sounds = features(speech, model, block) if model else spectra.copy()
    first = np.array([row["start"] // HOP for row in speech.rows])
    last = np.array([(row["start"] + row["length"]) // HOP for row in speech.rows])
    voices, manners = [], []
    for a, b in zip(first, last, strict=True):
        sounds[a:b] = (sounds[a:b] - sounds[a:b].mean(0)) / (sounds[a:b].std(0) + 1e-3)
        voices.append(np.concatenate([spectra[a:b].mean(0), spectra[a:b].std(0)]))
        manners.append(manner(heard[a:b], scale))
    if model is None:
        sounds *= 1 / (1 + np.arange(CEPSTRA, dtype=np.float32)) ** 0.25
        sounds = np.concatenate(
            [0.6 * np.roll(sounds, 1, axis=0), sounds, 0.6 * np.roll(sounds, -1, axis=0)], axis=1
        )
    slow = np.concatenate([_components(np.array(voices), VOICES), np.array(manners)], axis=1)
    edges = np.quantile(slow, np.arange(1, LEVELS) / LEVELS, axis=0)  # (LEVELS - 1, SLOW)
    levels = (slow[None] > edges[:, None]).sum(0)  # (utterances, SLOW)
    ids = np.zeros((len(heard), FAST + SLOW), np.int64)
    ids[:, 0] = _clusters(sounds, count)
    ids[:, 1] = _clusters((spectra - spectra[::97].mean(0)) / scale, count)
    for a, b, row in zip(first, last, levels, strict=True):
        ids[a:b, FAST:] = row
    return ids


def manner(heard: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pitch, its spread, periodicity, and how much spectrum and energy move: (T, 15) -> (9,)."""
    cepstra, tone, periodic = heard[:, :CEPSTRA] / scale, heard[:, -2], heard[:, -1]
    weight = np.square(periodic) / (np.square(periodic).sum() + 1e-6)
    middle = float((weight * tone).sum())
    spread = float(np.sqrt((weight * np.square(tone - middle)).sum()))
    change, change3 = (float(np.abs(cepstra[n:] - cepstra[:-n]).mean()) for n in (1, 3))
    energy = cepstra[:, 0]
    numbers = [middle, spread, periodic.mean(), periodic.std(), change, change3, change / change3]
    return np.array([*numbers, energy.std(), np.abs(np.diff(energy)).mean()], np.float32)


def _components(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The leading principal components of standardised columns."""
    scaled = (rows - rows.mean(0)) / (rows.std(0) + 1e-3)
    leading: NDArray[np.float32] = np.linalg.svd(scaled, full_matrices=False)[2][:count]
    found: NDArray[np.float32] = scaled @ leading.T
    return found


def _clusters(rows: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """k-means on a fifth of the rows, the nearest cluster of all."""
    kmeans = MiniBatchKMeans(count, random_state=0, batch_size=10000, n_init=3, max_iter=40)
    kmeans.fit(rows[::5])
    parts = np.array_split(rows, max(1, len(rows) // 100000))
    return np.concatenate([kmeans.predict(part) for part in parts]).astype(np.int64)


def gabor_filters(filters: int = 40, length: int = 256) -> Tensor:
    """Mel-spaced cosines under Gaussians, in four phases each: (4 * filters, 1, length)."""
    mel = torch.linspace(0.0, 2595 * float(np.log10(1 + 7600 / 700)), filters + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)  # Hz
    middle, width = edges[1:-1] + 60, (edges[2:] - edges[:-2]).clamp_min(90)
    time = (torch.arange(length) - length / 2) / 16000
    envelope = torch.exp(-0.5 * (time * width[:, None] * 2.0) ** 2)
    phases = torch.arange(4) * torch.pi / 2
    waves = torch.cos(2 * torch.pi * middle[:, None, None] * time + phases[:, None])
    bank = waves * envelope[:, None]
    scaled: Tensor = bank / bank.norm(dim=-1, keepdim=True)
    return scaled.reshape(4 * filters, 1, length)


def frontend_model(blocks: int, seed: int) -> HubertModel:
    """A new model whose convolutions start as a filterbank that is pooled over time."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIG)
    config.num_hidden_layers = blocks
    model: HubertModel = HubertModel(config).train()
    model.set_attn_implementation("eager")  # in bfloat16 on a CPU three times as fast as sdpa
    for index in range(len(CONFIG.conv_dim)):
        weight = model.get_parameter(f"feature_extractor.conv_layers.{index}.conv.weight").data
        if index == 0:
            weight.copy_(10 * gabor_filters())  # beside biases of 0.06, what speech gives is large
            continue
        weight.mul_(0.3)
        for out in range(len(weight)):
            read = torch.arange(4) + 4 * (out % 40) if index == 1 else torch.tensor([out])
            weight[out, read] += 0.5 / len(read)
    return model


def learn_spectrum(speech: Speech, model: HubertModel, steps: int, seed: int) -> float:
    """Teach the convolutions to predict spectra and pitch; the error left, of variance one."""
    torch.manual_seed(seed)
    convolutions = model.feature_extractor
    read = nn.Sequential(
        nn.LayerNorm(CONFIG.conv_dim[-1]), nn.Linear(CONFIG.conv_dim[-1], MELS + 2)
    )
    optimizer = torch.optim.AdamW([*convolutions.parameters(), *read.parameters()])
    random = torch.Generator().manual_seed(seed)
    frames = (CROP - FIELD) // HOP + 1
    recent = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 3e-3)
        clips = draw(speech, range(len(speech.noisy) // HOP - frames - 2), 16, random)[0]
        tones = torch.stack([pitch(clip)[:frames] for clip in clips])
        tones[..., 0] = (tones[..., 0] - 4.9) * tones[..., 1]  # of periodic sounds
        wanted = torch.cat([spectrum(clips)[:, :frames], tones], dim=-1)
        wanted = (wanted - wanted.mean((0, 1))) / wanted.std((0, 1))
        with torch.autocast("cpu", torch.bfloat16):
            heard = convolutions(clips)
        loss = F.mse_loss(read(heard.float().transpose(1, 2)), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            print(f"spectrum {step + 1}/{steps} error {np.mean(recent[-100:]):.3f}", flush=True)
    return float(np.mean(recent[-100:]))


@torch.no_grad()
def keep_spectrum(model: HubertModel) -> None:
    """Let the first hidden state be the spectrum that the convolutions have learned.

    The projection is the identity, and the convolution that tells positions keeps its size. Left
    to themselves both grew until the first state, and all that follow, had lost the speaker.
    """
    model.feature_extractor._freeze_parameters()
    model.get_parameter("feature_projection.projection.weight").copy_(torch.eye(CONFIG.hidden_size))
    for name, parameter in model.named_parameters():
        if name.startswith("feature_projection.") or name.endswith("weight.original0"):
            parameter.requires_grad_(False)


def draw(
    speech: Speech, starts: range, size: int, random: torch.Generator
) -> tuple[Tensor, list[int]]:
    """Crops of noisy speech as loud as they are, and the frames at which they start."""
    at = torch.randint(starts.start, starts.stop, (size,), generator=random).tolist()
    return torch.stack([speech.clip(a * HOP, CROP) for a in at]), at


def masks(batch: int, frames: int, random: torch.Generator) -> Tensor:
    """True where a frame is hidden: spans of MASK_LENGTH, a fifth of all frames."""
    starts = torch.rand(batch, frames, generator=random) < MASK_START
    spans = F.max_pool1d(
        F.pad(starts.float(), (MASK_LENGTH - 1, 0))[:, None], MASK_LENGTH, stride=1
    )
    return spans[:, 0] > 0


def train(
    speech: Speech,
    ids: NDArray[np.int64],
    model: HubertModel,
    options: argparse.Namespace,
    steps: int,
    seed: int,
) -> dict[str, object]:
    torch.manual_seed(seed)
    sizes = (ids.max(0) + 1).tolist()
    head = nn.Linear(CONFIG.hidden_size, sum(sizes))
    keep_spectrum(model)
    parameters = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    random = torch.Generator().manual_seed(seed)
    frames = (CROP - FIELD) // HOP + 1
    last = speech.rows[-HELD_OUT]["start"] // HOP - frames - 1
    labels = torch.from_numpy(ids)
    history: list[Tensor] = []
    began = time.time()

    def losses(starts: range, size: int) -> Tensor:
        """Cross-entropy of clusters and of levels where hidden, then where visible: (4,)."""
        clips, at = draw(speech, starts, size, random)
        wanted = torch.stack([labels[a : a + frames] for a in at])  # (B, T, FAST + SLOW)
        hidden = masks(size, frames, random)
        with torch.autocast("cpu", torch.bfloat16):
            states = model(clips, mask_time_indices=hidden).last_hidden_state
        scores = head(states.float()).split(sizes, dim=-1)
        found = []
        for where in (hidden, ~hidden):
            each = [F.cross_entropy(s[where], wanted[..., i][where]) for i, s in enumerate(scores)]
            found += [torch.stack(each[:FAST]).mean(), torch.stack(each[FAST:]).mean()]
        return torch.stack(found)

    weights = torch.tensor([1.0, options.slow, options.seen, options.slow * options.seen])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, options.learning_rate)
        loss = losses(range(last), options.batch)
        optimizer.zero_grad(set_to_none=True)
        (weights * loss).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        history.append(loss.detach())
        if (step + 1) % 100 == 0:
            recent = torch.stack(history[-100:]).mean(0)
            named = " ".join(f"{n} {v:.3f}" for n, v in zip(LOSSES, recent.tolist(), strict=True))
            print(f"{step + 1}/{steps} {named} {time.time() - began:.0f} s", flush=True)
    model.eval()
    with torch.no_grad():
        held = [losses(range(last + frames, len(ids) - frames - 2), 16) for _ in range(10)]
    model.train()
    result = dict(zip(LOSSES, torch.stack(held).mean(0).tolist(), strict=True))
    return {**result, "seconds": time.time() - began}


def save(model: HubertModel, folder: Path, record: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).eval().half().save_pretrained(folder)
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "do_normalize": False,
        "return_attention_mask": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[3000], help="of each round")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--warm", type=int, default=1500, help="steps of the convolutions alone")
    parser.add_argument("--blocks", type=int, default=CONFIG.num_hidden_layers)
    parser.add_argument("--block", type=int, default=5, help="that gives the next round's targets")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seen", type=float, default=1.0, help="weight of visible frames")
    parser.add_argument("--slow", type=float, default=2.0, help="weight of levels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    speech = Speech(options.data)
    record: dict[str, object] = {
        "hours": len(speech.clean) / 16000 / 3600,
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    learned = options.data / "spectrum.pt"
    if not learned.is_file():
        first = frontend_model(options.blocks, options.seed)
        print(learn_spectrum(speech, first, options.warm, options.seed))
        torch.save(first.feature_extractor.state_dict(), learned)
    start = torch.load(learned, weights_only=True)
    model: HubertModel | None = None
    for turn, steps in enumerate(options.steps):
        ids = (
            targets(speech, model, options.block, options.clusters)
            if model
            else first_targets(speech, options.data, options.clusters)
        )
        print(f"round {turn + 1}", flush=True)
        model = frontend_model(options.blocks, options.seed + turn)
        model.feature_extractor.load_state_dict(start)
        record[f"round_{turn + 1}"] = train(speech, ids, model, options, steps, options.seed + turn)
        print(record[f"round_{turn + 1}"], flush=True)
        save(model, options.out, record)


if __name__ == "__main__":
    main()
