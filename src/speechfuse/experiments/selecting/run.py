"""Probe every layer of every candidate, then pairs of the best layers of two encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechfuse import build
from speechfuse.cache.store import Store
from speechfuse.data.corpus import Corpus
from speechfuse.data.splits import split_utterances
from speechfuse.errors import DataError
from speechfuse.experiments.probing.properties import Clips
from speechfuse.experiments.probing.run import read_layer, stored
from speechfuse.experiments.selecting.file import SelectFile, candidates, probed_by
from speechfuse.experiments.selecting.kept import Kept
from speechfuse.experiments.selecting.probes import (
    VERSION,
    check_probe,
    cka,
    features,
    metric_of_probe,
    probe,
    residual_r2,
)
from speechfuse.extract import Before
from speechfuse.metrics import Evidence, paired_difference, with_interval
from speechfuse.ops import seed_for
from speechfuse.taskdata import find_corpus
from speechfuse.text import normalise_text
from speechfuse.types import Metric, Progress, Utterance

Layer = tuple[str, int]  # an encoder, and the layer's number in it


@dataclass(frozen=True)
class Candidate:
    """One layer, or layers of two encoders side by side, with a piece of evidence for each seed."""

    layers: tuple[Layer, ...]
    evidence: Sequence[Evidence]

    @cached_property
    def point(self) -> float:
        return float(np.mean([one.point() for one in self.evidence]))

    @cached_property
    def value(self) -> Metric:
        return with_interval(self.evidence)


@dataclass(frozen=True)
class Pair:
    """Two layers together, and what the weaker one adds to the better one."""

    both: Candidate
    better: Candidate  # alone
    sign: int
    residual: float | None  # share of what the better one leaves that the other one explains
    likeness: float  # CKA

    @cached_property
    def gain(self) -> Metric:
        """Of both over the better one: more is better, whatever the metric."""
        return gain(self.both, self.better, self.sign)


@dataclass(frozen=True)
class Selected:
    """One task: its layers, best first, and pairs, best first."""

    task: str
    what: str  # the probe
    clips: Clips
    singles: Sequence[Candidate]
    pairs: Sequence[Pair]

    @property
    def metric(self) -> str:
        return metric_of_probe(self.what)

    @property
    def sign(self) -> int:
        """1 if more is better."""
        return -1 if self.metric == "eer" else 1

    def of(self, layers: Sequence[Layer]) -> Candidate | None:
        """What these layers are worth, if they were probed."""
        every = [*self.singles, *(pair.both for pair in self.pairs)]
        return next((c for c in every if set(c.layers) == set(layers)), None)

    def as_good(self, other: Candidate) -> bool:
        """Whether the best layer is not shown to be better."""
        best = self.singles[0]
        return other is best or not gain(best, other, self.sign).above(0)

    def best_of(self, encoder: str) -> Candidate:
        return next(c for c in self.singles if c.layers[0][0] == encoder)


def gain(one: Candidate, other: Candidate, sign: int) -> Metric:
    """By how much one is better than the other, paired; sign: 1 if more is better."""
    found = paired_difference(one.evidence, other.evidence)
    return found if sign > 0 else -found


def select(
    selection: SelectFile,
    out: Path,
    wanted: Mapping[str, Sequence[tuple[Layer, ...]]] | None = None,
    progress: Progress | None = None,
    *,
    left_out: dict[str, str] | None = None,
    before: Before | None = None,
) -> list[Selected]:
    """Every task, from development data alone; what is done is kept in OUT/probes.jsonl.

    wanted: by task, pairs that are probed beside those of the best layers. left_out: is told why
    a task cannot be probed, and the others are; without it that is an error. before: called with
    what is to be extracted of a sample, and may refuse it.

    Raises:
        SpeechFuseError: no corpus, tasks that cannot be probed, or an encoder that cannot be
            built, before the first probe.
    """
    corpora = {
        name: find_corpus(selection.entry(name).corpus, progress) for name in selection.tasks
    }
    samples, wrong = {}, {}
    for name, corpus in corpora.items():
        try:
            what, clips = _sample(selection, name, corpus)
            check_probe(what, clips, selection.folds)
            samples[name] = what, clips
        except DataError as error:
            wrong[name] = str(error)
    if wrong and (left_out is None or not samples):
        raise DataError("\n".join(f"tasks.{name}: {why}" for name, why in wrong.items()))
    if left_out is not None:
        left_out.update(wrong)
    found = []
    kept = Kept(out)
    read: dict[tuple[str, ...], Features] = {}
    for name, (what, clips) in samples.items():
        key = (corpora[name].name, *(u.id for u in clips.utterances))
        if key not in read:
            read[key] = Features(selection, clips, progress, before)
        pairs = (wanted or {}).get(name, ())
        found.append(_selected(selection, name, what, read[key], pairs, kept, progress))
    return found


def _sample(selection: SelectFile, name: str, corpus: Corpus) -> tuple[str, Clips]:
    """Training and development utterances, in turn of each speaker until there are enough."""
    entry = selection.entry(name)
    task = build.build_task(name, entry)
    what = probed_by(task)
    assert what is not None, "refused when the file was read"
    usable = [u for u in corpus.utterances if all(u.label(need) for need in task.needs)]
    if not usable:
        raise DataError(f"no utterance of {corpus.name} has {' and '.join(task.needs)}")
    splits = split_utterances(usable, entry.split, f"task '{name}' on {corpus.name}")
    return what, Clips(drawn([*splits["train"], *splits["dev"]], selection.limits.utterances))


def drawn(utterances: Sequence[Utterance], most: int) -> list[Utterance]:
    """At most so many, as evenly from the speakers as there are; the same each time."""
    by_speaker: dict[str, list[Utterance]] = {}
    for u in sorted(utterances, key=lambda u: u.id):
        by_speaker.setdefault(u.speaker or u.id, []).append(u)
    ranked = []
    for speaker, members in sorted(by_speaker.items()):
        order = np.random.default_rng(seed_for(0, speaker)).permutation(len(members)).tolist()
        ranked += [(rank, speaker, members[place]) for rank, place in enumerate(order)]
    ranked.sort(key=lambda one: one[:2])
    return sorted((u for _, _, u in ranked[:most]), key=lambda u: u.id)


class Features:
    """Mean and deviation over frames of each candidate's layers, each read when it is asked."""

    def __init__(
        self,
        selection: SelectFile,
        clips: Clips,
        progress: Progress | None,
        before: Before | None = None,
    ) -> None:
        self.clips = clips
        self._places: dict[Layer, tuple[Store, int]] = {}
        self._read: dict[Layer, Tensor] = {}
        every = candidates(selection)
        stores = stored(every, clips, progress, before)
        for variant, store in zip(every, stores, strict=True):
            numbers = build.build_upstream(variant.recipe, variant.encoder).layers
            self._places |= {(variant.encoder, n): (store, i) for i, n in enumerate(numbers)}

    @property
    def layers(self) -> list[Layer]:
        return [*self._places]

    def __getitem__(self, layer: Layer) -> Tensor:
        if layer not in self._read:
            store, index = self._places[layer]
            self._read[layer] = read_layer(store, self.clips, index, None)[0]
        return self._read[layer]

    def about(self, layer: Layer) -> list[str | int]:
        """What its values depend on beside the clips."""
        return [self._places[layer][0].folder.name, layer[1]]


def _selected(
    selection: SelectFile,
    name: str,
    what: str,
    pooled: Features,
    wanted: Sequence[tuple[Layer, ...]],
    kept: Kept,
    progress: Progress | None,
) -> Selected:
    clips, folds, seeds = pooled.clips, selection.folds, selection.seeds
    sign = -1 if what == "verification" else 1
    rows = [
        [u.id, u.start, u.duration, u.speaker, u.text, u.column(what)] for u in clips.utterances
    ]

    def about(noun: str, layers: tuple[Layer, ...], seed: int) -> list[Any]:
        return [VERSION, noun, what, [pooled.about(one) for one in layers], seed, folds, rows]

    def probed(layers: tuple[Layer, ...]) -> Candidate:
        def of(seed: int) -> Evidence:
            x = torch.cat([features(what, pooled[layer]) for layer in layers], dim=1)
            return probe(what, x, clips, folds, seed)

        return Candidate(
            layers,
            [kept.evidence(about("probe", layers, seed), partial(of, seed)) for seed in seeds],
        )

    def told(layers: tuple[Layer, ...], done: int, total: int, noun: str) -> Candidate:
        candidate = probed(layers)
        if progress:
            progress(f"{name}: {noun} probed", done, total)
        return candidate

    every = pooled.layers
    singles = [told((one,), n, len(every), "layers") for n, one in enumerate(every, start=1)]
    alone = {c.layers[0]: c for c in singles}
    singles.sort(key=lambda c: -sign * c.point)
    by_encoder: dict[str, list[Candidate]] = {}
    for candidate in singles:
        by_encoder.setdefault(candidate.layers[0][0], []).append(candidate)
    tops = {encoder: of[: selection.limits.layers] for encoder, of in by_encoder.items()}
    chosen = {
        tuple(sorted(a.layers + b.layers)): None
        for one, other in combinations(tops.values(), 2)
        for a, b in product(one, other)
    }
    chosen.update({tuple(sorted(layers)): None for layers in wanted})
    targets = _targets(what, clips)
    pairs = []
    for number, layers in enumerate(chosen, start=1):
        both = told(layers, number, len(chosen), "pairs")
        better, other = sorted((alone[one] for one in layers), key=lambda c: -sign * c.point)

        def likened(better: Candidate = better, other: Candidate = other) -> list[float | None]:
            one, two = (features(what, pooled[c.layers[0]]) for c in (better, other))
            left = None
            if targets is not None:
                left = residual_r2(one, two, targets, clips.speakers, folds, seeds[0])
            return [left, cka(one, two)]

        order = better.layers + other.layers
        residual, likeness = kept.ask(about("likeness", order, seeds[0]), likened)
        pairs.append(Pair(both, better, sign, residual, likeness))
    pairs.sort(key=lambda p: -sign * p.both.point)
    return Selected(name, what, clips, singles, pairs)


def _targets(what: str, clips: Clips) -> Tensor | None:
    """What a linear map is fitted to: shares of characters or one-hot classes, (N, C)."""
    if what == "verification":  # speakers who are held out are no class
        return None
    if what == "characters":
        texts = [[c for c in normalise_text(u.text or "") if c.isalnum()] for u in clips.utterances]
        known = sorted({c for text in texts for c in text})
        rows = [[text.count(c) / max(1, len(text)) for c in known] for text in texts]
    else:
        labels = clips.labels(what)
        rows = [[float(label == c) for c in sorted(set(labels))] for label in labels]
    return torch.tensor(rows, dtype=torch.float64)
