"""Probe every layer of every encoder; what is done is kept in OUT/results.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechfuse import build
from speechfuse.cache.store import Store
from speechfuse.errors import DataError
from speechfuse.experiments.probing.acoustics import frame_acoustics, praat
from speechfuse.experiments.probing.file import ProbeFile, Variant, variants
from speechfuse.experiments.probing.properties import (
    OF_FRAMES,
    VALUES,
    Clips,
    check_property,
    metric_of,
    probe_characters,
    probe_classes,
    probe_frames,
)
from speechfuse.experiments.probing.ridge import Moments
from speechfuse.extract import Before, extract, extraction_jobs, tell_int8
from speechfuse.metrics import SpeakerSums
from speechfuse.taskdata import TaskData, find_corpus
from speechfuse.types import Progress

VERSION = 1  # of what is written; raise it when the same settings give other numbers
CHUNK = 64  # clips whose frames are summed at a time
Acoustics = list[Tensor]  # of every clip


@dataclass(frozen=True)
class Result:
    """One property in one layer of one encoder, from one seed."""

    encoder: str
    layer: int  # its number in the encoder
    property: str
    seed: int
    evidence: SpeakerSums


def probed_clips(probe: ProbeFile, progress: Progress | None = None) -> Clips:
    """The utterances that the file asks for.

    Raises:
        DataError: there are none, or a property cannot be probed on them.
    """
    corpus = find_corpus(probe.corpus, progress)
    kept = [
        u
        for u in corpus.utterances
        if all(u.column(column) in values for column, values in probe.only.items())
    ]
    if not kept:
        raise DataError(
            f"only: no utterance of {corpus.name} has these values; look at its columns"
        )
    clips = Clips(kept)
    for name in probe.properties:
        check_property(name, clips, probe.folds)
    if "pitch" in probe.properties:
        praat()
    return clips


def run_probe(
    probe: ProbeFile,
    clips: Clips,
    out: Path,
    progress: Progress | None = None,
    before: Before | None = None,
) -> list[Result]:
    """Every property in every layer, for every seed; finished ones are not computed again.

    clips: from `probed_clips`. before: called with what is to be extracted, and may refuse it.

    Raises:
        SpeechFuseError: whatever is wrong with an encoder, before the first probe.
    """
    every = variants(probe)
    stores = zip(every, stored(every, clips, progress, before), strict=True)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.jsonl"
    known = _read(path)
    acoustics: dict[float, Acoustics] = {}
    found = []
    for variant, store in stores:
        (only,) = variant.recipe.upstreams
        numbers = build.build_upstream(variant.recipe, only).layers
        for layer, number in enumerate(numbers):
            places = {
                (name, seed): _digest(probe, store, clips, layer, name, seed)
                for name in probe.properties
                for seed in variant.seeds
            }
            todo = [place for place, digest in places.items() if digest not in known]
            for (name, seed), line in _probes(probe, store, clips, layer, todo, acoustics):
                digest = places[name, seed]
                known[digest] = {
                    "encoder": variant.encoder,
                    **line,
                    "layer": number,
                    "of": digest,
                }
                _append(path, known[digest])
            for (name, seed), digest in places.items():
                evidence = _evidence(known[digest])
                found.append(Result(variant.encoder, number, name, seed, evidence))
            if progress:
                progress(f"layers of {variant.encoder} probed", layer + 1, len(numbers))
    return found


def stored(
    every: Sequence[Variant],
    clips: Clips,
    progress: Progress | None,
    before: Before | None = None,
) -> list[Store]:
    """The layers of each encoder for these clips, filled, unless `before` refuses all of it."""
    jobs = []
    for variant in every:
        ((name, entry),) = variant.recipe.tasks.items()
        task = build.build_task(name, entry)
        data = TaskData(name, task, {"all": list(clips.utterances)}, {}, None)
        jobs += extraction_jobs(variant.recipe, {name: data}, ("all",))
    if before:
        before(every[0].recipe, jobs)
    stores = []
    for variant in every:
        job = jobs.pop(0)  # its weights are let go before those of the next one are read
        made = [job] if job.missing else []
        extract(variant.recipe, [job], progress)
        tell_int8(made)
        stores.append(job.store)
    return stores


def _probes(
    probe: ProbeFile,
    store: Store,
    clips: Clips,
    layer: int,
    todo: Sequence[tuple[str, int]],
    acoustics: dict[float, Acoustics],
) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """Lines of results of one layer, which is read once."""
    if not todo:
        return
    measured = None
    if any(name in OF_FRAMES for name, _ in todo):
        rate = store.spec.frame_rate
        if rate not in acoustics:
            acoustics[rate] = [frame_acoustics(u, rate) for u in clips.utterances]
        measured = acoustics[rate]
    pooled, sums = read_layer(store, clips, layer, measured)
    for name, seed in todo:
        if name in OF_FRAMES:
            evidence, strengths = probe_frames(sums[name], probe.folds, seed)
        elif name == "characters":
            mean = pooled[:, : store.spec.dim]
            evidence, strengths = probe_characters(mean, clips, probe.folds, seed)
        else:
            evidence, strengths = probe_classes(pooled, name, clips, probe.folds, seed)
        yield (
            (name, seed),
            {
                "property": name,
                "seed": seed,
                "metric": metric_of(name),
                "value": round(evidence.point(), 5),
                "strengths": strengths,
                "speakers": list(evidence.speakers),
                "rows": evidence.rows.tolist(),
            },
        )


def read_layer(
    store: Store, clips: Clips, layer: int, acoustics: Acoustics | None
) -> tuple[Tensor, dict[str, dict[str, Moments]]]:
    """Mean and deviation over the frames of each clip (N, 2 D), and sums over frames.

    The sums are of pitch over voiced frames and of energy over all, of each speaker who has any;
    none without acoustics.
    """
    utterances = clips.utterances
    shift = store.layer(utterances[0], layer).double().mean(0)  # sums of small numbers are exact
    pooled = torch.zeros(len(utterances), 2 * len(shift), dtype=torch.float64)
    sums: dict[str, dict[str, Moments]] = {name: {} for name in OF_FRAMES}
    by_speaker: dict[str, list[int]] = {}
    for index, speaker in enumerate(clips.speakers):
        by_speaker.setdefault(speaker, []).append(index)
    for speaker, members in by_speaker.items():
        for start in range(0, len(members), CHUNK):
            frames, targets = [], []
            for index in members[start : start + CHUNK]:
                hidden = store.layer(utterances[index], layer).double() - shift
                pooled[index] = torch.cat([hidden.mean(0), hidden.std(0, correction=0)])
                if acoustics is not None:
                    frames.append(hidden)
                    targets.append(acoustics[index][: len(hidden)])
            if frames:
                _add(sums, speaker, torch.cat(frames), torch.cat(targets))
    return pooled, sums


def _add(
    sums: dict[str, dict[str, Moments]], speaker: str, frames: Tensor, targets: Tensor
) -> None:
    """Voiced frames are summed once, for both properties."""
    voiced = ~targets[:, 0].isnan()
    spoken = Moments.of(frames[voiced], targets[voiced])
    rest = Moments.of(frames[~voiced], targets[~voiced].nan_to_num())
    parts = {"pitch": spoken.only(0), "energy": spoken.only(1) + rest.only(1)}
    for name, part in parts.items():
        if part.count:
            there = sums[name].get(speaker)
            sums[name][speaker] = part if there is None else there + part


def _digest(probe: ProbeFile, store: Store, clips: Clips, layer: int, name: str, seed: int) -> str:
    """Changes with whatever the result depends on."""
    rows = [
        [u.id, u.start, u.duration, u.speaker, u.text, u.column(name)] for u in clips.utterances
    ]
    about = [VERSION, store.folder.name, layer, name, seed, probe.folds, rows]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Lines by digest; a last one that was cut off is none, and is ended."""
    found = {}
    text = path.read_text() if path.is_file() else ""
    if text and not text.endswith("\n"):
        with path.open("a") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            read = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[read["of"]] = read
    return found


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _evidence(line: dict[str, Any]) -> SpeakerSums:
    return SpeakerSums(line["speakers"], np.array(line["rows"]), VALUES[line["metric"]])
