"""Run frozen upstreams over a corpus once and keep every layer."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import float32
from numpy.typing import NDArray

from speechfuse import build
from speechfuse.audio import SAMPLE_RATE, pad_clips, read_audio
from speechfuse.cache.store import Store, free_bytes
from speechfuse.contracts import Upstream
from speechfuse.data.batching import by_duration
from speechfuse.errors import DataError
from speechfuse.ops import moved
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData
from speechfuse.types import Progress, Utterance, Waveforms

VERSION = 2  # of what is stored; raise it when the same settings give other numbers
BATCH_SECONDS = 60.0  # audio in one forward pass, padding counted


def open_store(
    recipe: Recipe, name: str, upstream: Upstream, noise_snr: float | None = None
) -> Store:
    """The store of one upstream as this recipe has it; nothing is computed."""
    about = {
        "version": VERSION,
        "kind": recipe.upstreams[name].kind,
        "options": build.upstream_options(recipe, name),
        "identity": upstream.identity(),
        "noise_snr": noise_snr,
    }
    return Store(Path(recipe.store.folder), about, upstream.plan.spec, recipe.store.dtype)


def fill_stores(
    recipe: Recipe,
    tasks: Mapping[str, TaskData],
    progress: Progress | None = None,
    splits: Sequence[str] = ("train", "dev", "test"),
) -> dict[str, list[Store]]:
    """The stacks of every task's utterances from every frozen upstream, computed where missing.

    Raises:
        DataError: too little room for all the stacks, unreadable audio, too short a clip.
        UpstreamError: an upstream whose weights cannot be read.
    """
    by_noise: dict[float | None, list[Utterance]] = defaultdict(list)
    for data in tasks.values():
        by_noise[data.noise_snr] += [u for split in splits for u in data.splits[split]]
    tuned = build.tuned_upstreams(recipe)
    frozen = [name for name in recipe.upstreams if name not in tuned]
    upstreams = {name: build.build_upstream(recipe, name) for name in frozen}
    stores = {
        (name, noise): open_store(recipe, name, upstream, noise)
        for noise in by_noise
        for name, upstream in upstreams.items()
    }
    missing = {place: store.missing(by_noise[place[1]]) for place, store in stores.items()}
    _check_room(recipe, stores, missing)
    for (name, _), utterances in missing.items():  # all of them before an hour is spent on one
        if utterances:
            upstreams[name].load()
            read_batch([min(utterances, key=lambda u: u.duration or 0.0)], upstreams[name])
    for (name, noise), utterances in missing.items():
        if utterances:
            _fill(recipe, name, upstreams[name], stores[name, noise], utterances, noise, progress)
    return {task: [stores[name, data.noise_snr] for name in frozen] for task, data in tasks.items()}


def _fill(
    recipe: Recipe,
    name: str,
    upstream: Upstream,
    store: Store,
    utterances: Sequence[Utterance],
    noise_snr: float | None,
    progress: Progress | None,
) -> None:
    """Compute the stacks of these utterances, on the GPU if there is one."""
    if recipe.length_policy == "padded":
        _report_drift(name, upstream, utterances)
    device = best_device()
    upstream.to(device)
    silence, equal = upstream.plan.silence, recipe.length_policy == "equal"
    done = 0
    with store.writer() as writer:
        for batch in by_duration(utterances, BATCH_SECONDS, silence=silence, equal=equal):
            stack = upstream(moved(read_batch(batch, upstream, noise_snr), device))
            lengths = stack.lengths.tolist()
            for row, (utterance, frames) in enumerate(zip(batch, lengths, strict=True)):
                writer.add(utterance, [layer[row, :frames] for layer in stack.layers])
            done += len(batch)
            if progress:
                progress(f"layers of {name}", done, len(utterances))
    upstream.to("cpu")


def best_device() -> torch.device:
    """Where upstreams are run: on the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_batch(
    utterances: Sequence[Utterance], upstream: Upstream, noise_snr: float | None = None
) -> Waveforms:
    """Audio of several utterances; a clip too short for the upstream is named.

    Raises:
        DataError: unreadable audio, or a clip shorter than the receptive field.
    """
    clips = []
    for u in utterances:
        samples = read_audio(u.audio, u.start, u.duration)
        if len(samples) < upstream.plan.min_samples:
            raise DataError(
                f"utterance {u.id} ({u.audio.name}) has {len(samples)} samples at "
                f"{SAMPLE_RATE} Hz, the upstream needs {upstream.plan.min_samples} for one frame; "
                "leave it out"
            )
        if noise_snr is not None:
            samples = _with_noise(samples, noise_snr)
        clips.append(torch.from_numpy(samples))
    return pad_clips(clips)


def drift(upstream: Upstream, utterances: Sequence[Utterance]) -> float:
    """How far frames in a padded batch are from the same frames alone, relative root mean square.

    Zero but for rounding under `masked` and `equal`; what `padded` costs.
    """
    together = upstream(read_batch(utterances, upstream))
    error = scale = 0.0
    for row, utterance in enumerate(utterances):
        alone = upstream(read_batch([utterance], upstream))
        frames = int(alone.lengths[0])
        for one, other in zip(alone.layers, together.layers, strict=True):
            error += float((one[0] - other[row, :frames]).square().sum())
            scale += float(one[0].square().sum())
    return float((error / scale) ** 0.5)


def _report_drift(name: str, upstream: Upstream, utterances: Sequence[Utterance]) -> None:
    """Say what padding costs: the shortest clip beside the longest."""
    by_length = sorted(utterances, key=lambda u: u.duration or 0.0)
    share = drift(upstream, [by_length[0], by_length[-1]])
    logging.getLogger(__name__).warning(
        "length_policy padded: frames of upstream %s change by %.1f %% when the shortest clip is "
        "padded to the longest; masked and equal do not change them",
        name,
        100 * share,
    )


def _check_room(
    recipe: Recipe,
    stores: Mapping[Any, Store],
    missing: Mapping[Any, Sequence[Utterance]],
) -> None:
    """Refuse before anything is computed if all that is missing has no room."""
    seconds = {place: sum(u.duration or 0.0 for u in wanted) for place, wanted in missing.items()}
    needed = sum(store.bytes_for(seconds[place]) for place, store in stores.items())
    folder = Path(recipe.store.folder)
    budget, free = recipe.store.budget_gb * 1e9, free_bytes(folder)
    wants = f"the layers of {sum(seconds.values()) / 3600:.2f} h need {needed / 1e9:.1f} GB"
    if needed > budget:
        raise DataError(
            f"{wants}, store.budget_gb is {recipe.store.budget_gb:g}; raise it, or use fewer "
            "utterances"
        )
    if needed > free:
        raise DataError(
            f"{wants}, the disk of {folder} has {free / 1e9:.1f}; free some, or set store.folder "
            "elsewhere"
        )


def _with_noise(samples: NDArray[float32], snr: float) -> NDArray[float32]:
    """Pink noise mixed in, the same for the same samples; the level of the speech stays."""
    seed = int.from_bytes(hashlib.sha256(samples.tobytes()).digest()[:8], "little")
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(samples)))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(samples))
    power = float(np.mean(samples.astype(np.float64) ** 2)), float(np.mean(noise**2))
    gain = (power[0] / max(power[1], 1e-20)) ** 0.5 * 10 ** (-snr / 20)
    mixed: NDArray[float32] = (samples + gain * noise).astype(np.float32)
    return mixed
