"""Frozen encoders against transformers called in the plain way, on clips as corpora have them.

* Ours: batches of near-equal length, in float32 and in bfloat16 where the machine has it.
* Plain: transformers' own model with its default attention on padded batches of 8 in random order,
  and s3prl's WavLM on the same batches where it can be imported; inputs are ready before it begins.
* The ceiling: large matrix products of the same type, in the same turn.

Weights are drawn from a seed, nothing is fetched. Durations are log-normal, as those of read and
of acted speech are nearly.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from speechfuse.audio import SAMPLE_RATE, pad_clips
from speechfuse.data.batching import batch_seconds, by_duration
from speechfuse.errors import SpeechFuseError, did_you_mean
from speechfuse.measure import (
    Call,
    Clock,
    Device,
    devices,
    median_ratio,
    peak_bytes,
    seconds_in_turns,
    setting,
)
from speechfuse.ops import length_mask, moved
from speechfuse.plan import count_products
from speechfuse.types import Table, Utterance, Waveforms
from speechfuse.upstreams.huggingface import HuggingFace, has_bfloat16

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
WHISPER: dict[str, Any] = {
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_layers": 1,  # it is built, and not called
    "decoder_attention_heads": 8,
}
# Configuration beside the family's defaults, and preprocessor.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hubert-base": ({"model_type": "hubert"}, {"do_normalize": True}),
    "wavlm-base": ({"model_type": "wavlm"}, {"do_normalize": False}),
    "wavlm-large": (
        {"model_type": "wavlm", **LARGE},
        {"do_normalize": True, "return_attention_mask": True},
    ),
    "whisper-base": ({"model_type": "whisper", **WHISPER}, {}),
}
MEDIAN, SPREAD, SHORTEST, LONGEST = 4.5, 0.6, 1.0, 15.0  # of durations: seconds, of their log
PLAIN_BATCH = 8
SHORT, PADS = 3.0, (0.0, 1.0, 3.0)  # seconds of a clip and of silence, for whisper
PRODUCTS = {"cpu": (2048, 4), "cuda": (8192, 8)}  # size and number of those that are the ceiling
# What makers state of dense products in bfloat16, by a word of the device's name.
STATED = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

Batches = Sequence[Waveforms]


@dataclass(frozen=True)
class Extraction:
    """Rates are seconds of audio in a second, medians; ratios are medians within a turn."""

    device: str
    shape: str
    rates: Mapping[str, float]  # of float32, bfloat16, plain, s3prl; what there is of them
    gains: Mapping[str, float]  # ours in float32 and bfloat16 over plain
    compiled: Mapping[str, float]  # compiled over not, if asked for
    over_s3prl: float | None  # ours in float32
    of_peak: Mapping[str, float]  # products that are needed, over those of the ceiling
    operations: Mapping[str, float]  # a second, of products that are needed
    memory: Mapping[str, int]  # bytes at most beside weights, in the largest batch
    drift: tuple[float, float] | None  # of bfloat16, relative: the worst layer, the last
    macs: float  # multiply-adds for a second of audio, as plans count them
    machine: str  # the GPU's name, or the number of threads


def extraction_rates(found: Sequence[Extraction]) -> list[dict[str, Any]]:
    """Ours, for `plan --rates`: which encoder is meant, its multiply-adds tell."""
    return [
        {
            "shape": one.shape,
            "multiply_adds": one.macs,
            "compute": compute,
            "device": one.device,
            "machine": one.machine,
            "rate": one.rates[compute],
        }
        for one in found
        for compute in ("float32", "bfloat16")
        if compute in one.rates
    ]


def extraction_tables(
    found: Sequence[Extraction],
    seconds: float,
    repeats: int,
    asked: Device = "all",
    clock: Clock = time.perf_counter,
) -> Iterator[Table]:
    """What `bench_extraction` found and `bench_short_whisper` finds, for reading."""
    measured = setting(repeats, clock)
    speed, memory = [], []
    for one in found:
        name, ours = f"{one.shape}, {one.device}", ("float32", "bfloat16")
        rates = [_shown(one.rates, kind, "{:.1f}") for kind in (*ours, "plain", "s3prl")]
        gains = [_shown(one.gains, kind, "{:.2f}") for kind in ours]
        over = "" if one.over_s3prl is None else f"{one.over_s3prl:.2f}"
        shares = [_shown(one.of_peak, kind, "{:.0%}") for kind in ours]
        speeds = [_shown(one.compiled, kind, "{:.2f}") for kind in ours if one.compiled]
        speed.append([name, *rates, *gains, over, *shares, *speeds])
        sizes = {kind: size / 1e6 for kind, size in one.memory.items()}
        drifts = ["", ""] if one.drift is None else [f"{100 * d:.2f} %" for d in one.drift]
        used = ""
        if "bfloat16" in one.operations and (stated := _stated(one.device)):
            used = f"{one.operations['bfloat16'] / stated:.0%}"
        cells = [_shown(sizes, kind, "{:.0f}") for kind in (*ours, "plain")]
        memory.append([name, *cells, *drifts, used])
    columns = ["audio s / s", "float32", "bfloat16", "plain", "s3prl", "float32 / plain"]
    columns += ["bfloat16 / plain", "float32 / s3prl", "of peak", "of peak, bfloat16"]
    columns += ["compiled / float32", "compiled / bfloat16"] * any(one.compiled for one in found)
    yield f"Extraction of {seconds:g} s of audio, {measured}", columns, speed
    columns = ["MB in a batch", "float32", "bfloat16", "plain", "drift, worst layer"]
    yield "Memory and drift", [*columns, "drift, last layer", "of stated peak"], memory
    if any(one.shape == "whisper-base" for one in found):
        short = bench_short_whisper(seconds, repeats, asked, clock)
        rows = [
            [f"{device}, {pad:g} s of silence", f"{rate:.1f}", f"{gain:.1f}", f"{over:.1f}"]
            for device, pad, rate, gain, over in short
        ]
        columns = ["", "audio s / s", "/ 30 s mode", "/ plain"]
        yield f"Whisper-base on clips of {SHORT:g} s, float32, {measured}", columns, rows


def _shown(values: Mapping[str, float], name: str, form: str) -> str:
    return form.format(values[name]) if name in values else ""


def _stated(device: str) -> float | None:
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for word, peak in STATED.items() if word in name), None)


def bench_extraction(
    seconds: float,
    repeats: int,
    shapes: Sequence[str] = tuple(SHAPES),
    asked: Device = "all",
    clock: Clock = time.perf_counter,
    *,
    compiled: bool = False,
) -> Iterator[Extraction]:
    """Every shape on every device there is. seconds: of audio in a turn, at least.

    compiled: take turns with the same encoders compiled.
    """
    clips = natural_clips(seconds)
    for device in devices(asked):
        for shape in shapes:
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                written = _written(shape, Path(folder))
                yield _measured(device, shape, written, clips, repeats, clock, compiled)


def natural_clips(seconds: float, seed: int = 0) -> list[Tensor]:
    """Noise of natural durations, so many that they have these seconds, in random order."""
    random = np.random.default_rng(seed)
    clips: list[Tensor] = []
    while sum(map(len, clips)) < seconds * SAMPLE_RATE:
        duration = np.exp(random.normal(np.log(MEDIAN), SPREAD)).clip(SHORTEST, LONGEST)
        noise = random.standard_normal(int(duration * SAMPLE_RATE), dtype=np.float32)
        clips.append(torch.from_numpy(0.1 * noise))
    return clips


def bench_short_whisper(
    seconds: float,
    repeats: int,
    asked: Device = "all",
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[str, float, float, float, float]]:
    """Device, silence, audio seconds a second, and that over our 30 s mode and over plain."""
    count = max(2, round(seconds / SHORT / 4))
    clips = [0.1 * torch.randn(round(SHORT * SAMPLE_RATE)) for _ in range(count)]
    for device in devices(asked):
        with tempfile.TemporaryDirectory() as name, torch.no_grad():
            folder = _written("whisper-base", Path(name))
            calls: dict[str, Call] = {"plain": _plain(folder, clips, device)}
            for pad in (*PADS, "30s"):
                upstream = _ours(folder, "float32", device, whisper_pad=pad)
                calls[str(pad)] = _over(upstream, _batches(upstream, clips, device))
            taken = seconds_in_turns(calls, repeats, clock=clock)
            for pad in PADS:
                own = taken[str(pad)]
                gain, over = (median_ratio(taken[other], own) for other in ("30s", "plain"))
                yield device, pad, count * SHORT / median(own), gain, over


def checked_shapes(asked: Sequence[str] | None) -> tuple[str, ...]:
    """Those asked for, or all.

    Raises:
        SpeechFuseError: there is no such shape.
    """
    for name in asked or ():
        if name not in SHAPES:
            raise SpeechFuseError(f"no shape '{name}'; {did_you_mean(name, SHAPES)}")
    return tuple(asked or SHAPES)


def _written(shape: str, folder: Path) -> Path:
    config, preprocessor = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def _ours(folder: Path, compute: Any, device: str, **options: Any) -> HuggingFace:
    upstream = HuggingFace(source=str(folder), weights="random", compute=compute, **options)
    upstream.load()
    return upstream.to(device)


def _batches(upstream: HuggingFace, clips: Sequence[Tensor], device: str) -> list[Waveforms]:
    """As extraction makes them."""
    utterances = [
        Utterance(str(index), Path(), duration=len(clip) / SAMPLE_RATE)
        for index, clip in enumerate(clips)
    ]
    most, silence = batch_seconds(torch.device(device)), upstream.plan.silence
    return [
        moved(pad_clips([clips[int(u.id)] for u in batch]), torch.device(device))
        for batch in by_duration(utterances, most, silence=silence)
    ]


def _over(upstream: HuggingFace, batches: Batches) -> Call:
    def run() -> None:
        for wav in batches:
            upstream(wav)

    return run


def _plain(folder: Path, clips: Sequence[Tensor], device: str) -> Callable[..., None]:
    """transformers' own model on padded batches; `largest`: only the one of most samples."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    whole: Any = transformers.AutoModel.from_config(config)
    whisper = config.model_type == "whisper"
    model = (whole.encoder if whisper else whole).eval().to(device)
    kind: Any = (
        transformers.WhisperFeatureExtractor if whisper else transformers.Wav2Vec2FeatureExtractor
    )
    extractor = kind.from_pretrained(folder)
    padding: dict[str, Any] = {} if whisper else {"padding": True}
    batches = [
        extractor(
            [clip.numpy() for clip in clips[start : start + PLAIN_BATCH]],
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            **padding,
        ).to(device)
        for start in range(0, len(clips), PLAIN_BATCH)
    ]
    batches.sort(key=lambda batch: -next(iter(batch.values())).numel())

    def run(*, largest: bool = False) -> None:
        for batch in batches[:1] if largest else batches:
            model(**batch, output_hidden_states=True)

    return run


def _s3prl(folder: Path, clips: Sequence[Tensor], device: str) -> Call | None:
    """s3prl's WavLM on the batches of `_plain`; None of another family, or where it is not."""
    config = json.loads((folder / "config.json").read_text())
    try:
        from s3prl.upstream.wavlm.WavLM import (  # type: ignore[import-not-found,unused-ignore]
            WavLM,
            WavLMConfig,
        )
    except ImportError:
        return None
    if config["model_type"] != "wavlm":
        return None
    large = config.get("do_stable_layer_norm", False)
    options = {
        "extractor_mode": "layer_norm" if large else "default",
        "encoder_layers": config.get("num_hidden_layers", 12),
        "encoder_embed_dim": config.get("hidden_size", 768),
        "encoder_ffn_embed_dim": config.get("intermediate_size", 3072),
        "encoder_attention_heads": config.get("num_attention_heads", 12),
        "layer_norm_first": large,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "max_distance": 800,
    }
    model = WavLM(WavLMConfig(options)).eval().to(device)
    waves = [
        moved(pad_clips([*clips[start : start + PLAIN_BATCH]]), torch.device(device))
        for start in range(0, len(clips), PLAIN_BATCH)
    ]

    def run() -> None:
        for wav in waves:
            model.extract_features(
                wav.samples,
                padding_mask=~length_mask(wav.lengths, wav.samples.shape[1]),
                output_layer=options["encoder_layers"],
                ret_layer_results=True,
            )

    return run


def _products(dtype: torch.dtype, device: str) -> tuple[Call, float]:
    """Large matrix products and how many multiply-adds they are."""
    size, count = PRODUCTS[device]
    one = torch.randn(size, size, device=device, dtype=dtype)

    def run() -> None:
        for _ in range(count):
            one @ one

    return run, float(count * size**3)


def _measured(
    device: str,
    shape: str,
    folder: Path,
    clips: Sequence[Tensor],
    repeats: int,
    clock: Clock,
    compiled: bool,
) -> Extraction:
    kinds = ["float32", *(["bfloat16"] if device == "cuda" or has_bfloat16() else [])]
    ours = {kind: _ours(folder, kind, device) for kind in kinds}
    batches = _batches(ours["float32"], clips, device)
    plain, s3prl = _plain(folder, clips, device), _s3prl(folder, clips, device)
    calls: dict[str, Call] = {kind: _over(ours[kind], batches) for kind in kinds}
    calls["plain"] = plain
    if s3prl is not None:
        calls["s3prl"] = s3prl
    ceilings = {}
    for kind in kinds:
        calls[f"{kind} products"], ceilings[kind] = _products(getattr(torch, kind), device)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels are not counted; a warm-up besides
        needed = count_products(calls["float32"])
    if "bfloat16" in kinds:
        ours["bfloat16"](batches[-1])  # a first call has weights to lay out
    for kind in kinds if compiled else ():
        other = _ours(folder, kind, device, compile=True)
        other(batches[-1])
        calls[f"{kind} compiled"] = _over(other, batches)
    memory = {kind: peak_bytes(_over(ours[kind], batches[:1])) for kind in kinds}
    memory["plain"] = peak_bytes(lambda: plain(largest=True))
    taken = seconds_in_turns(calls, repeats, warm_up=0, clock=clock)
    audio = sum(map(len, clips)) / SAMPLE_RATE
    return Extraction(
        device=device,
        shape=shape,
        rates={k: audio / median(taken[k]) for k in (*kinds, "plain", "s3prl") if k in taken},
        gains={kind: median_ratio(taken["plain"], taken[kind]) for kind in kinds},
        compiled={
            kind: median_ratio(taken[kind], taken[f"{kind} compiled"]) for kind in kinds if compiled
        },
        over_s3prl=median_ratio(taken["s3prl"], taken["float32"]) if s3prl else None,
        of_peak={
            kind: needed / ceilings[kind] * median_ratio(taken[f"{kind} products"], taken[kind])
            for kind in kinds
        },
        operations={kind: 2 * needed / median(taken[kind]) for kind in kinds},
        memory=memory,
        drift=_drift(ours["float32"], ours["bfloat16"], batches[-1]) if len(kinds) > 1 else None,
        macs=ours["float32"].plan.macs_per_second,
        machine=torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads",
    )


def _drift(exact: nn.Module, near: nn.Module, wav: Waveforms) -> tuple[float, float]:
    """Relative root mean square of the differences of valid frames: the worst layer, the last."""
    found = [
        float((other - one).norm() / one.norm())  # padding is zero in both
        for one, other in zip(exact(wav).layers, near(wav).layers, strict=True)
    ]
    return max(found), found[-1]
