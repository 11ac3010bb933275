"""What alpha varies with: an analysis of variance over gates, scalars, prompts and sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from speechfuse.experiments.alpha.sample import Opened, read_alpha, swapped
from speechfuse.metrics import SpeakerSums, Values
from speechfuse.types import Where

FACTORS = ("encoder gate", "task scalar", "prompt", "utterance", "position", "together")
Ways = Sequence[Tensor]  # of each utterance, alpha in all ways of reading it, (G, S, P, T, L)


def variance_shares(ways: Ways, speakers: Sequence[str]) -> dict[str, SpeakerSums]:
    """Shares of the variance of alpha; they sum to one.

    Alpha y[g, s, p, u, t, l] is measured for every task g whose encoder gate is read, task s whose
    scalar is added and task p whose prompt is given, at position t of utterance u, crossed in full,
    so that the parts are orthogonal. With m the mean over all of g, s, p, u, t, sums of squares
    over all of g, s, p, u, t, l are

        total         (y - m)^2
        encoder gate  (mean of y at g - m)^2, and task scalar at s, prompt at p likewise
        utterance     (mean of y at u - m)^2
        position      (mean of y at u, t - mean of y at u)^2
        together      the rest: what two or more of them do only together

    Every position counts the same, so a long utterance counts more than a short one.
    """
    names = sorted(set(speakers))
    g, s, p, _, layers = ways[0].shape
    rows = np.zeros((len(names), 4 + g * s * p * layers))
    for one, speaker in zip(ways, speakers, strict=True):
        size = one.shape[3]
        by_cell = one.mean((0, 1, 2))  # (T, L)
        squares = [
            one.square().sum() / (g * s * p),
            by_cell.square().sum(),
            size * by_cell.mean(0).square().sum(),
        ]
        sums = one.sum(3).flatten().numpy()
        rows[names.index(speaker)] += np.concatenate([[size], [float(q) for q in squares], sums])
    return {
        name: SpeakerSums(names, rows, partial(_share, shape=(g, s, p, layers), part=index))
        for index, name in enumerate(FACTORS)
    }


def _share(sums: Values, *, shape: tuple[int, int, int, int], part: int) -> Values:
    """One factor's share, of rows (..., 4 + G S P L): positions, three sums of squares, sums."""
    count, squares = sums[..., :1], sums[..., 1:4]
    by_way = sums[..., 4:].reshape(*sums.shape[:-1], *shape) / count[..., None, None, None]
    mean = by_way.mean((-4, -3, -2))
    level = (mean**2).sum(-1)
    parts = []
    for kept in (-4, -3, -2):
        others = tuple(axis for axis in (-4, -3, -2) if axis != kept)
        parts.append((by_way.mean(others) ** 2).sum(-1).mean(-1) - level)
    whole, cells, utterances = np.moveaxis(squares / count, -1, 0)
    parts += [utterances - level, cells - utterances]
    total = whole - level
    parts.append(total - sum(parts))
    least = np.maximum(parts[part], 0)  # none is negative but for rounding
    share: Values = np.where(total > 1e-15, least / np.maximum(total, 1e-15), 0.0)
    return share


def crossed(run: Opened, where: Where) -> Ways:
    """Alpha of the sample in all ways of reading it: gates x scalars x prompts of all tasks."""
    names = list(run.tasks)
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for scalar, prompt in product(names, names):
        model = swapped(run.model, prompt, scalar_of=scalar)
        for gate in names:
            found[gate, scalar, prompt] = read_alpha(run, model, prompt, where, gate=gate)
    return [_stacked(found, names, index) for index in range(len(run.speakers))]


def _stacked(found: Mapping[tuple[str, ...], list[Tensor]], names: list[str], at: int) -> Tensor:
    many = len(names)
    rows = torch.stack([found[way][at] for way in product(names, repeat=3)])
    return rows.reshape(many, many, many, *rows.shape[1:])
