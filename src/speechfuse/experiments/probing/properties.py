"""What is looked for in a layer: the targets of a probe, its folds and how it is scored.

pitch       log F0 of voiced frames, by a frame-wise linear map; R2, held-out speakers
energy      log energy of all frames, by a frame-wise linear map; R2, held-out speakers
characters  share of each character in the text, from the mean over frames; R2 over all
            characters, held-out speakers, and no text that was trained on
speaker     who speaks, of the speakers that are trained on; accuracy, held-out texts
a column    which label, such as emotion; balanced accuracy, held-out speakers

A linear map of the mean over frames is the mean of a map of every frame, so the probe of
characters reads frames and needs no alignment. Clips are classified from mean and standard
deviation over frames, by least squares on one-hot targets in which all classes weigh the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechfuse.errors import DataError
from speechfuse.experiments.probing.folds import group_folds
from speechfuse.experiments.probing.ridge import Moments, frames_held_out, rows_held_out
from speechfuse.metrics import (
    SpeakerSums,
    accuracy,
    balanced_accuracy,
    mean_recall,
    r_squared,
    share_right,
)
from speechfuse.text import normalise_text
from speechfuse.types import Utterance

OF_FRAMES = ("pitch", "energy")
VALUES = {"r2": r_squared, "accuracy": share_right, "balanced_accuracy": mean_recall}


@dataclass(frozen=True)
class Clips:
    """What is known of the clips that are probed, in the order of the features."""

    utterances: Sequence[Utterance]

    @property
    def speakers(self) -> list[str]:
        return [u.speaker or u.id for u in self.utterances]

    def texts(self) -> list[str]:
        """Normalised; a clip without one is alone of its kind."""
        return [normalise_text(u.text) if u.text else f"<{u.id}>" for u in self.utterances]

    def labels(self, column: str) -> list[str]:
        return [u.label(column) or "" for u in self.utterances]


def metric_of(name: str) -> str:
    """The metric of a property: R2 of what is measured, an accuracy of what is named."""
    if name in (*OF_FRAMES, "characters"):
        return "r2"
    return "accuracy" if name == "speaker" else "balanced_accuracy"


def chance_of(name: str, clips: Clips) -> float:
    """What is reached without the speech: the mean, or a guess."""
    if metric_of(name) == "r2":
        return 0.0
    names = clips.speakers if name == "speaker" else clips.labels(name)
    return 1 / len(set(names))


def check_property(name: str, clips: Clips, folds: int) -> None:
    """Raises DataError if the corpus does not have it, or cannot hold out what it has to."""
    have = clips.utterances
    if name not in OF_FRAMES:
        column = "text" if name == "characters" else name
        lacking = [u.id for u in have if not u.label(column)]
        if lacking:
            raise DataError(
                f"property '{name}': {len(lacking)} of {len(have)} utterances have no {column} "
                f"({lacking[0]}); leave it out of properties, or keep others with only"
            )
    if name == "speaker":
        group_folds(clips.texts(), folds, 0, "different texts")
        return
    if found := unfit(name, clips, folds):
        raise DataError(f"property '{name}': {'; '.join(found)}")


def unfit(name: str, clips: Clips, folds: int) -> tuple[str, str] | None:
    """Why clips that all have it cannot hold out what they have to, and what to probe instead.

    Raises:
        DataError: fewer speakers than folds.
    """
    group_folds(clips.speakers, folds, 0)
    if name in OF_FRAMES:
        return None
    return _unfit_texts(clips, folds) if name == "characters" else _unfit_classes(name, clips)


def _unfit_texts(clips: Clips, folds: int) -> tuple[str, str] | None:
    """Texts that all speakers say can be told apart without knowing a character."""
    of = group_folds(clips.speakers, folds, 0)
    texts = clips.texts()
    for fold in range(folds):
        held = {text for text, f in zip(texts, of, strict=True) if f == fold}
        left = sum(text not in held for text in texts)
        if left < len(texts) / 2:
            return (
                f"{len(set(texts))} texts in {len(texts)} utterances, so that {left} are left to "
                "train on without the texts of other speakers, and a probe could not tell "
                "characters from whole texts",
                "use text, which tells those apart",
            )
    return None


def _unfit_classes(name: str, clips: Clips) -> tuple[str, str] | None:
    by_class: dict[str, set[str]] = defaultdict(set)
    for label, speaker in zip(clips.labels(name), clips.speakers, strict=True):
        by_class[label].add(speaker)
    if len(by_class) < 2:
        return f"all utterances are '{next(iter(by_class))}'", "leave it out"
    for label, speakers in sorted(by_class.items()):
        if len(speakers) < 2:
            return (
                f"only speaker '{min(speakers)}' has '{label}', so that it cannot be tested on a "
                "speaker held out",
                "leave it out with only",
            )
    return None


def probe_frames(
    sums: Mapping[str, Moments], folds: int, seed: int
) -> tuple[SpeakerSums, list[float]]:
    """R2 of a frame-wise linear map. sums: of each speaker, with one target."""
    names = sorted(sums)
    groups = [sums[name] for name in names]
    errors, strengths = frames_held_out(groups, group_folds(names, folds, seed))
    rows = torch.stack(
        [
            torch.stack([torch.full_like(g.y, g.count), g.y, g.yy, e])
            for g, e in zip(groups, errors, strict=True)
        ]
    )
    return SpeakerSums(names, rows.flatten(1).numpy(), r_squared), strengths


def probe_characters(
    mean: Tensor, clips: Clips, folds: int, seed: int
) -> tuple[SpeakerSums, list[float]]:
    """R2 of the shares of all characters. mean: over frames, (N, D)."""
    texts, speakers = clips.texts(), clips.speakers
    letters = [[c for c in text if c.isalnum()] for text in texts]
    known = sorted({c for text in letters for c in text})
    shares = torch.tensor(
        [[text.count(c) / max(1, len(text)) for c in known] for text in letters]
    ).double()
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    said = torch.tensor([number[text] for text in texts])

    def weigh(rest: Tensor, held: Tensor) -> Tensor:
        return (~torch.isin(said[rest], said[held])).double()

    def score(rows: Tensor, found: Tensor) -> float:
        return -float((shares[rows] - found).square().sum())

    of = torch.tensor(group_folds(speakers, folds, seed))
    found, strengths = rows_held_out(mean.double(), shares, of, weigh, score)
    parts = torch.stack(
        [torch.ones_like(shares), shares, shares.square(), (shares - found).square()]
    )
    names = sorted(set(speakers))
    rows = np.zeros((len(names), 4 * len(known)))
    np.add.at(
        rows,
        [names.index(s) for s in speakers],
        parts.transpose(0, 1).flatten(1).numpy(),
    )
    return SpeakerSums(names, rows, r_squared), strengths


def probe_classes(
    pooled: Tensor, name: str, clips: Clips, folds: int, seed: int
) -> tuple[SpeakerSums, list[float]]:
    """Accuracy of a linear classifier. pooled: mean and deviation over frames, (N, D)."""
    speakers = clips.speakers
    labels = speakers if name == "speaker" else clips.labels(name)
    groups = clips.texts() if name == "speaker" else speakers
    known = sorted(set(labels))
    ids = torch.tensor([known.index(label) for label in labels])
    hot = torch.nn.functional.one_hot(ids, len(known)).double()

    def balance(rows: Tensor) -> Tensor:
        return 1 / torch.bincount(ids[rows], minlength=len(known))[ids[rows]].double()

    def score(rows: Tensor, found: Tensor) -> float:
        """Balanced accuracy, and of equals the one with the smaller squared error.

        By squared error alone much of what tells 44 speakers apart is shrunk away.
        """
        shares = balance(rows) / balance(rows).sum()
        right = (found.argmax(1) == ids[rows]).double()
        return float(shares @ (right - 1e-6 * (hot[rows] - found).square().sum(1)))

    of = torch.tensor(group_folds(groups, folds, seed, "different texts"))
    found, strengths = rows_held_out(
        pooled.double(), hot, of, lambda rest, held: balance(rest), score
    )
    guesses = [known[i] for i in found.argmax(1).tolist()]
    measure = accuracy if name == "speaker" else balanced_accuracy
    return measure(labels, guesses, speakers), strengths
