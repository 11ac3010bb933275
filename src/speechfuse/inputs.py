"""What the model reads of an utterance: stored layers, or the waveform for a tuned upstream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from speechfuse import build
from speechfuse.audio import pad_clips
from speechfuse.cache.store import Store
from speechfuse.clips import read_batch
from speechfuse.extract import Before, fill_stores
from speechfuse.ranks import Rank
from speechfuse.recipe import Recipe
from speechfuse.taskdata import TaskData
from speechfuse.types import Progress, Utterance, Waveforms


class Clips:
    """The waveforms of utterances, for an upstream whose layers change and are not kept.

    Stands beside `Store`: the same questions, the layers follow when the model runs.
    """

    def __init__(self, recipe: Recipe, name: str, noise_snr: float | None) -> None:
        self._upstream = build.build_upstream(recipe, name)
        with torch.device("meta"):  # shapes tell lengths; the weights are the model's
            self._upstream.load()
        self.spec = self._upstream.plan.spec
        self._noise_snr = noise_snr
        self._frames: dict[str, int] = {}

    def look(self, utterances: Sequence[Utterance], progress: Progress | None = None) -> None:
        """Read every clip once, so that one that cannot be read is named before any training.

        Raises:
            DataError: unreadable audio, or a clip shorter than the receptive field.
        """
        for done, utterance in enumerate(utterances):
            self.frames(utterance)
            if progress:
                progress("clips to train on", done + 1, len(utterances))

    def frames(self, utterance: Utterance) -> int:
        """Number of frames that the upstream will give."""
        key = f"{utterance.audio}|{utterance.start}|{utterance.duration}|{utterance.alteration}"
        if key not in self._frames:
            lengths = read_batch([utterance], self._upstream).lengths
            self._frames[key] = int(self._upstream.frames(lengths))
        return self._frames[key]

    def batch(
        self, utterances: Sequence[Utterance], spans: Sequence[slice] | None = None
    ) -> Waveforms:
        """Several utterances side by side; of each all, or what gives a span of frames."""
        whole = read_batch(utterances, self._upstream, self._noise_snr)
        if spans is None:
            return whole
        hop = round(self._upstream.sample_rate / self.spec.frame_rate)
        shortest = self._upstream.plan.min_samples
        clips = []
        for samples, size, span in zip(whole.samples, whole.lengths.tolist(), spans, strict=True):
            end = (span.stop - 1) * hop + shortest
            clips.append(samples[span.start * hop : min(end, size)])
        return pad_clips(clips)


Inputs = Store | Clips


def find_inputs(
    recipe: Recipe,
    tasks: Mapping[str, TaskData],
    progress: Progress | None = None,
    before: Before | None = None,
    rank: Rank | None = None,
) -> dict[str, list[Inputs]]:
    """For each task, one for each upstream in recipe order, or one if all are stored as one.

    Layers are computed where they are missing, unless `before` refuses it; by all processes that
    train together, of which this is one.

    Raises:
        DataError: too little room for all the stacks, unreadable audio, too short a clip.
        UpstreamError: an upstream whose weights cannot be read.
    """
    tuned = build.tuned_upstreams(recipe)
    clips = {
        (name, data.noise_snr): Clips(recipe, name, data.noise_snr)
        for data in tasks.values()
        for name in tuned
    }
    for (_, noise), one in clips.items():
        members = [
            u
            for data in tasks.values()
            if data.noise_snr == noise
            for split in data.splits.values()
            for u in split
        ]
        one.look(members, progress)
    stores = fill_stores(recipe, tasks, progress, before=before, rank=rank)
    if not tuned:
        return {task: [*stores[task]] for task in tasks}
    found: dict[str, list[Inputs]] = {}
    for task, data in tasks.items():
        frozen = iter(stores[task])
        found[task] = [
            clips[name, data.noise_snr] if name in tuned else next(frozen)
            for name in recipe.upstreams
        ]
    return found
