"""What features are worth for a task: probes in closed form on speakers that are held out.

characters    shares of the characters of a text from the mean over frames (asr); R2
a column      which class, from mean and deviation over frames (emotion, ...); balanced accuracy
verification  are two clips of one speaker: cosine after linear discriminant analysis; EER

The first two are those of `probe`. All of them say how much is there for a linear reader, and
all are in the metric's own direction: of an EER less is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechfuse.data.splits import make_trials
from speechfuse.errors import DataError
from speechfuse.experiments.probing.folds import group_folds
from speechfuse.experiments.probing.properties import (
    Clips,
    metric_of,
    probe_characters,
    probe_classes,
    unfit,
)
from speechfuse.experiments.probing.ridge import rows_held_out
from speechfuse.metrics import Evidence, SpeakerTrials, eer
from speechfuse.types import Trial

VERSION = 1  # of the probes, so that what older ones found counts no more
SHRINKAGE = (0.01, 0.1, 1.0, 10.0)  # of mean variance added to each feature's
DIRECTIONS = 64  # of the discriminant analysis, at most
TRIALS = 250  # of one speaker in each fold, and twice as many of two


def metric_of_probe(what: str) -> str:
    """By which a probe is scored."""
    return "eer" if what == "verification" else metric_of(what)


def check_probe(what: str, clips: Clips, folds: int) -> None:
    """Raises DataError if the sample does not have it, or cannot hold out what it has to."""
    if what != "verification":
        if found := unfit(what, clips, folds):
            raise DataError(f"{found[0]}; raise limits.utterances, or take another corpus")
        return
    for fold in members_of(clips, folds, 0):
        speakers = [clips.speakers[place] for place in fold]
        if len(set(speakers)) < 2 or len(speakers) == len(set(speakers)):
            raise DataError(
                f"{len(set(clips.speakers))} speakers in {folds} folds, of which one "
                f"has {len(set(speakers))} with {len(speakers)} clips; it needs two speakers and a "
                "speaker with two clips in each: lower folds, or raise limits.utterances"
            )


def probe(what: str, pooled: Tensor, clips: Clips, folds: int, seed: int) -> Evidence:
    """What features are worth; pooled: mean, then deviation over frames, of each encoder."""
    if what == "verification":
        return probe_verification(pooled, clips, folds, seed)
    if what == "characters":
        return probe_characters(pooled, clips, folds, seed)[0]
    return probe_classes(pooled, what, clips, folds, seed)[0]


def features(what: str, pooled: Tensor) -> Tensor:
    """Of mean and deviation over frames (N, 2 D) what the probe reads."""
    return pooled[:, : pooled.shape[1] // 2] if what == "characters" else pooled


def members_of(clips: Clips, folds: int, seed: int) -> list[list[int]]:
    """Places of the clips in each fold, all of a speaker in one."""
    of = group_folds(clips.speakers, folds, seed)
    return [[place for place, f in enumerate(of) if f == k] for k in range(folds)]


def probe_verification(pooled: Tensor, clips: Clips, folds: int, seed: int) -> SpeakerTrials:
    """Trials within each fold, of vectors that were fitted to the speakers of the others.

    The shrinkage of a fold is the best on the other folds.
    """
    members = members_of(clips, folds, seed)
    pooled = pooled.double()
    scores: list[list[np.ndarray]] = []
    trials = [_trials(clips, fold, seed) for fold in members]
    place = {u.id: index for index, u in enumerate(clips.utterances)}
    for fold, pairs in zip(members, trials, strict=True):
        rest = torch.tensor(sorted({*range(len(pooled))} - {*fold}))
        one = [place[t.enrolment] for t in pairs]
        other = [place[t.test] for t in pairs]
        vectors = discriminant(pooled, rest, [clips.speakers[i] for i in rest.tolist()])
        scores.append([(v[one] * v[other]).sum(1).numpy() for v in vectors])
    same = [np.array([t.same for t in pairs]) for pairs in trials]
    errors = np.array([[eer(s, own) for s in of] for of, own in zip(scores, same, strict=True)])
    chosen = [int((errors.sum(0) - mine).argmin()) for mine in errors]
    names = sorted(set(clips.speakers))
    ends = [
        np.array(
            [names.index(clips.speakers[place[getattr(t, end)]]) for pairs in trials for t in pairs]
        )
        for end in ("enrolment", "test")
    ]
    found = np.concatenate([of[k] for of, k in zip(scores, chosen, strict=True)])
    return SpeakerTrials(names, ends[0], ends[1], np.concatenate(same), found)


def _trials(clips: Clips, fold: Sequence[int], seed: int) -> list[Trial]:
    """As many pairs of one speaker as are wanted, and twice as many of two."""
    pairs = make_trials([clips.utterances[place] for place in fold], seed)
    random = np.random.default_rng(seed)
    kept = []
    for same, wanted in ((True, TRIALS), (False, 2 * TRIALS)):
        of = [t for t in pairs if t.same is same]
        kept += [of[i] for i in np.sort(random.permutation(len(of))[:wanted])]
    return kept


def discriminant(x: Tensor, rows: Tensor, speakers: Sequence[str]) -> list[Tensor]:
    """Unit vectors (N, K) of all clips, for each shrinkage; fitted to some rows and their speakers.

    Features are scaled by their deviation over these rows; the covariance within speakers is
    shrunk to the identity, and the directions are those in which speakers differ most against it.
    """
    names = sorted(set(speakers))
    index = torch.tensor([names.index(s) for s in speakers])
    mean, deviation = x[rows].mean(0), x[rows].std(0).clamp_min(1e-8)
    scaled = (x - mean) / deviation
    if len(rows) < x.shape[1]:  # nothing is learned across the span of the rows: turn into it
        scaled = scaled @ torch.linalg.svd(scaled[rows], full_matrices=False)[2].T
    train = scaled[rows]
    counts = torch.bincount(index).double()
    sums = torch.zeros(len(names), train.shape[1], dtype=x.dtype).index_add_(0, index, train)
    means = sums / counts[:, None]
    within = train - means[index]
    values, basis = torch.linalg.eigh(within.T @ within / len(train))
    weighted = (means * counts.sqrt()[:, None]) @ basis
    found = []
    for shrinkage in SHRINKAGE:
        white = (values.clamp_min(0) + shrinkage * values.mean()).rsqrt()
        directions = torch.linalg.svd(weighted * white, full_matrices=False)[2]
        kept = directions[: min(DIRECTIONS, len(names) - 1)]
        projected = (scaled @ basis * white) @ kept.T
        found.append(torch.nn.functional.normalize(projected, dim=1, eps=1e-12))
    return found


def residual_r2(
    first: Tensor, second: Tensor, targets: Tensor, speakers: Sequence[str], folds: int, seed: int
) -> float:
    """Share of what a linear map of the first leaves of the targets that the second explains.

    Both on speakers that are held out; below zero is nothing.
    """
    of = torch.tensor(group_folds(speakers, folds, seed))

    def predicted(x: Tensor, y: Tensor) -> Tensor:
        def score(rows: Tensor, found: Tensor) -> float:
            return -float((y[rows] - found).square().sum())

        return rows_held_out(
            x.double(), y, of, lambda rest, held: torch.ones(len(rest)).double(), score
        )[0]

    left = targets - predicted(first, targets)
    unexplained = left - predicted(second, left)
    return float(1 - unexplained.square().sum() / left.square().sum().clamp_min(1e-12))


def cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment of two feature sets of the same clips, 0 to 1.

    Kornblith et al. 2019, section 3 (arXiv:1905.00414). Features are scaled by their deviation,
    so that a few large dimensions do not decide it.
    """
    one, other = (_standard(x.double()) for x in (one, other))
    grams = [x @ x.T for x in (one, other)]
    shared = (grams[0] * grams[1]).sum()
    return float(shared / (grams[0].norm() * grams[1].norm()))


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-8)
