"""One encoder, measured: lengths, normalisation, range and speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import float32
from numpy.typing import NDArray

from speechfuse import catalog
from speechfuse.audio import SAMPLE_RATE
from speechfuse.clips import read_batch
from speechfuse.contracts import Upstream
from speechfuse.doctor.finding import Check, Finding
from speechfuse.extract import drift
from speechfuse.measure import best_device
from speechfuse.ops import moved
from speechfuse.types import Utterance
from speechfuse.upstreams.huggingface import CONV_FAMILY, HuggingFace, model_folder

MIXED, ALIKE = (1.0, 2.0, 3.5, 6.0), (2.0, 2.0, 2.0)  # seconds of the clips of a batch
POLICIES = {"masked": MIXED, "equal": ALIKE, "padded": MIXED}  # with what their batches hold
EXACT = 1e-3  # relative drift that is rounding
HALF = 65504.0  # the largest float16


class Patient:
    """An upstream with the clips that it is tried on, which are gone when it is closed."""

    def __init__(self, kind: str, options: Mapping[str, Any], folder: Path) -> None:
        self.kind, self.options, self._folder = kind, dict(options), folder

    def made(self, **changes: Any) -> Upstream:
        """The upstream anew, with some options changed."""
        upstream: Upstream = catalog.find("upstream", self.kind)(**self.options | changes)
        return upstream

    @cached_property
    def upstream(self) -> Upstream:
        upstream = self.made()
        upstream.load()
        return upstream

    def clips(self, seconds: Sequence[float]) -> list[Utterance]:
        """Speech-like sound, another one each time but always the same ones."""
        import soundfile

        made = []
        for number, size in enumerate(seconds):
            path = self._folder / f"{number}-{size:g}.wav"
            if not path.exists():
                soundfile.write(path, _voice(size, number), SAMPLE_RATE)
            made.append(Utterance(id=path.stem, audio=path, duration=size))
        return made


def encoder_checks(name: str, patient: Patient, dtype: str | None) -> list[tuple[str, Check]]:
    """dtype: of the store, if there is a recipe."""
    checks = [shape, lengths, values, speed, normalisation]
    return [(name, partial(check, name, patient, dtype)) for check in checks]


def shape(name: str, patient: Patient, dtype: str | None) -> Iterator[Finding]:
    """What the plan says; its weights are read."""
    del dtype
    plan = patient.upstream.plan
    spec = plan.spec
    yield Finding(
        name,
        "ok",
        f"{spec.num_layers} layers x {spec.dim} at {spec.frame_rate:g} Hz, "
        f"{plan.parameters:,} parameters, from {plan.min_samples} samples on",
    )


def lengths(name: str, patient: Patient, dtype: str | None) -> Iterator[Finding]:
    """How far frames in a batch are from the same frames alone, under each length policy."""
    del dtype
    chosen = getattr(patient.upstream, "length_policy", None)
    if chosen is None or not _has_policies(patient.upstream):
        share = drift(patient.upstream, patient.clips(MIXED))
        yield _drift_finding(name, "its batches", share, "equal")
        return
    shares = {}
    for policy, seconds in POLICIES.items():
        part = patient.upstream if policy == chosen else _loaded(patient, policy)
        shares[policy] = drift(part, patient.clips(seconds))
    told = ", ".join(f"{policy} {_percent(share)}" for policy, share in shares.items())
    best = "masked" if shares["masked"] < EXACT else "equal"
    why = {
        "masked": "exact, and batches may mix lengths",
        "equal": "masked is not exact for this encoder, batches of one length are",
    }[best]
    found = f"a frame in a batch differs from the same alone by: {told}; best is {best}, {why}"
    if shares[chosen] < EXACT:
        yield Finding(f"{name}, lengths", "ok", found)
    else:
        yield Finding(f"{name}, lengths", "warning", found, f"set length_policy: {best}")


def _drift_finding(name: str, what: str, share: float, best: str) -> Finding:
    found = f"a frame in {what} differs from the same alone by {_percent(share)}"
    if share < EXACT:
        return Finding(f"{name}, lengths", "ok", found)
    return Finding(f"{name}, lengths", "warning", found, f"set length_policy: {best}")


def _has_policies(upstream: Upstream) -> bool:
    return isinstance(upstream, HuggingFace) and upstream.config["model_type"] in CONV_FAMILY


def _loaded(patient: Patient, policy: str) -> Upstream:
    changes: dict[str, Any] = {"length_policy": policy}
    if policy == "padded":
        changes |= {"compute": "float32", "compile": False}
    upstream = patient.made(**changes)
    upstream.load()
    return upstream


def _percent(share: float) -> str:
    return "nothing" if share < 1e-5 else f"{100 * share:.2g} %"


def values(name: str, patient: Patient, dtype: str | None) -> Iterator[Finding]:
    """Whether hidden states are numbers that a store can keep."""
    stack = patient.upstream(read_batch(patient.clips(MIXED), patient.upstream))
    about = f"{name}, values"
    if not all(bool(torch.isfinite(layer).all()) for layer in stack.layers):
        bad = [i for i, layer in enumerate(stack.layers) if not torch.isfinite(layer).all()]
        yield Finding(
            about,
            "problem",
            f"states {', '.join(map(str, bad))} hold NaN or infinite numbers",
            "fetch the weights again; with compute: bfloat16 try float32",
        )
        return
    most = max(float(layer.abs().max()) for layer in stack.layers)
    found = f"hidden states up to {most:,.4g}"
    if most < HALF / 4:
        yield Finding(about, "ok", f"{found}, float16 holds them")
        return
    kept = most < HALF
    found += ", close to what float16 holds" if kept else ", more than float16 holds (65,504)"
    if dtype not in (None, "float16"):
        yield Finding(about, "ok", f"{found}; the store is {dtype}")
        return
    wrong = "problem" if dtype and not kept else "warning"
    yield Finding(about, wrong, found, "set store.dtype: bfloat16")  # type: ignore[arg-type]


def speed(name: str, patient: Patient, dtype: str | None) -> Iterator[Finding]:
    """Seconds of audio in a second, from one batch after another that warms up."""
    del dtype
    device, upstream = best_device(), patient.upstream
    upstream.to(device)
    wav = moved(read_batch(patient.clips(MIXED), upstream), device)
    with torch.no_grad():
        float(upstream(wav).layers[-1].sum())
        began = time.perf_counter()
        float(upstream(wav).layers[-1].sum())
        taken = time.perf_counter() - began
    upstream.to("cpu")
    factor = sum(MIXED) / taken
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    found = f"{factor:,.0f} s of audio a second on {device.type}{threads}"
    if factor < 1:
        remedy = "use a smaller encoder, fewer layers, or a GPU"
        yield Finding(f"{name}, speed", "warning", f"{factor:.2f} s of audio a second", remedy)
    else:
        yield Finding(f"{name}, speed", "ok", f"{found}; an hour takes {_time(3600 / factor)}")


def normalisation(name: str, patient: Patient, dtype: str | None) -> Iterator[Finding]:
    """Whether samples are normalised as transformers' own preprocessor does it."""
    del dtype
    upstream = patient.upstream
    if not _has_policies(upstream):
        return
    assert isinstance(upstream, HuggingFace)
    about, ours = f"{name}, input", bool(upstream.preprocessor.get("do_normalize", True))
    words = {True: "normalised to zero mean and unit variance", False: "as it is"}
    if not upstream.preprocessor:
        yield Finding(
            about,
            "warning",
            f"no preprocessor_config.json: audio is {words[ours]}, which the model may not expect",
            "put the file of the model's repository beside config.json",
        )
        return
    import transformers

    samples = 0.2 * _voice(1.0, 0) + 0.1
    folder = model_folder(upstream.source, upstream.revision, weights=False)
    make: Any = transformers.AutoFeatureExtractor
    read = make.from_pretrained(folder, trust_remote_code=False)
    given = read(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")
    theirs = not np.allclose(given["input_values"][0], samples, atol=1e-6)
    found = f"audio is {words[ours]}, do_normalize is {str(theirs).lower()}"
    if ours == theirs:
        yield Finding(about, "ok", found)
    else:
        yield Finding(about, "problem", found, "mend do_normalize in preprocessor_config.json")


def _voice(seconds: float, number: int) -> NDArray[float32]:
    """Harmonics of a gliding pitch, in syllables, with noise."""
    random = np.random.default_rng(number)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(110 + 15 * number + 20 * np.sin(3 * t)) / SAMPLE_RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    loud = 0.1 * np.abs(np.sin(2 * np.pi * 2 * t))
    made: NDArray[float32] = (loud * tone + 0.005 * random.standard_normal(len(t))).astype(float32)
    return made


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def patients(parts: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Patient]]:
    """Encoders by name, in a folder of clips that is gone afterwards. parts: kind and options."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, options) in parts.items():
            yield name, Patient(kind, options, Path(folder))
