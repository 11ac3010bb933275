"""Ridge regression in closed form, in float64, its strength chosen inside the training folds.

    minimise  mean over rows of weight * |y - x W - b|^2  +  strength * |scaled W|^2

Features are scaled by their standard deviation over the training rows; b is not penalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-6, 3))
Fold = Tensor  # (N,) int64, the fold of each row


@dataclass(frozen=True)
class Linear:
    """One solution for each strength."""

    weight: Tensor  # (S, D, C)
    bias: Tensor  # (S, C)

    def __call__(self, x: Tensor) -> Tensor:
        """Predictions of every strength: (N, D) -> (S, N, C)."""
        return x @ self.weight + self.bias[:, None]


@dataclass(frozen=True)
class Moments:
    """Sums over rows: all that ridge regression and its squared error need."""

    count: float
    x: Tensor  # (D,)
    y: Tensor  # (C,)
    xx: Tensor  # (D, D)
    xy: Tensor  # (D, C)
    yy: Tensor  # (C,)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Self:
        """Of rows x (N, D) and y (N, C)."""
        x, y = x.double(), y.double()
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))

    def __add__(self, other: Self) -> Self:
        mine, theirs = vars(self).values(), vars(other).values()
        return type(self)(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def __sub__(self, other: Self) -> Self:
        mine, theirs = vars(self).values(), vars(other).values()
        return type(self)(*(a - b for a, b in zip(mine, theirs, strict=True)))

    def only(self, target: int) -> Self:
        """With one of the targets."""
        one = slice(target, target + 1)
        return type(self)(self.count, self.x, self.y[one], self.xx, self.xy[:, one], self.yy[one])

    def solve(self, strengths: Sequence[float] = STRENGTHS) -> Linear:
        x, y = self.x / self.count, self.y / self.count
        covariance = self.xx / self.count - torch.outer(x, x)
        scale = _scale(covariance.diagonal())
        cross = (self.xy / self.count - torch.outer(x, y)) / scale[:, None]
        weight = _solve(covariance / torch.outer(scale, scale), cross, strengths) / scale[:, None]
        return Linear(weight, y - x @ weight)

    def errors(self, linear: Linear) -> Tensor:
        """Sums of squared errors of every strength and target, (S, C)."""
        weight, bias = linear.weight, linear.bias
        squares = (weight * (self.xx @ weight)).sum(1) - 2 * (weight * self.xy).sum(1)
        offsets = bias * (2 * self.x @ weight - 2 * self.y + self.count * bias)
        return self.yy + squares + offsets


def fit(x: Tensor, y: Tensor, weights: Tensor, strengths: Sequence[float] = STRENGTHS) -> Linear:
    """From rows x (N, D), y (N, C) and their weights (N,), in whichever space is smaller."""
    share = weights / weights.sum()
    x_mean, y_mean = share @ x, share @ y
    centred = x - x_mean
    scale = _scale(share @ centred.square())
    rows = centred / scale * share.sqrt()[:, None]
    targets = (y - y_mean) * share.sqrt()[:, None]
    if len(x) < x.shape[1]:
        weight = rows.T @ _solve(rows @ rows.T, targets, strengths)
    else:
        weight = _solve(rows.T @ rows, rows.T @ targets, strengths)
    weight = weight / scale[:, None]
    return Linear(weight, y_mean - x_mean @ weight)


def _scale(variance: Tensor) -> Tensor:
    """Standard deviations; one where a feature does not vary but for rounding."""
    floor = 1e-12 * variance.max().clamp_min(1e-30)
    return torch.where(variance > floor, variance, 1.0).sqrt()


def _solve(gram: Tensor, right: Tensor, strengths: Sequence[float]) -> Tensor:
    """(gram + strength I)^-1 right, for every strength: (S, D, C)."""
    eye = torch.eye(len(gram), dtype=gram.dtype)
    found = [
        torch.cholesky_solve(right, torch.linalg.cholesky(gram + strength * eye))
        for strength in strengths
    ]
    return torch.stack(found)


def frames_held_out(groups: Sequence[Moments], folds: Sequence[int]) -> tuple[Tensor, list[float]]:
    """Squared errors (groups, C) of solutions that saw nothing of a group's fold.

    groups: sums of each speaker. folds: of each speaker. The strength of a fold is the best on
    the other folds, each left out in turn. Also returns it, for each fold.
    """
    count = max(folds) + 1
    by_fold = [
        _sum([g for g, f in zip(groups, folds, strict=True) if f == k]) for k in range(count)
    ]
    total = _sum(by_fold)
    inner = torch.zeros(count, len(STRENGTHS), dtype=torch.float64)
    for one, other in combinations(range(count), 2):
        linear = (total - by_fold[one] - by_fold[other]).solve()
        inner[one] += by_fold[other].errors(linear).sum(1)
        inner[other] += by_fold[one].errors(linear).sum(1)
    chosen = [STRENGTHS[int(index)] for index in inner.argmin(1)]
    linears = [(total - part).solve([s]) for part, s in zip(by_fold, chosen, strict=True)]
    errors = [g.errors(linears[f])[0] for g, f in zip(groups, folds, strict=True)]
    return torch.stack(errors), chosen


def _sum(parts: Sequence[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def rows_held_out(
    x: Tensor,
    y: Tensor,
    folds: Fold,
    weigh: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[Tensor, Tensor], float],
) -> tuple[Tensor, list[float]]:
    """Predictions (N, C) of solutions that saw nothing of a row's fold, and strengths by fold.

    weigh: (training rows, rows held out) -> how much each training row counts. score: (rows,
    their predictions) -> higher is better; the strength of a fold has the highest sum over the
    other folds, each left out in turn.
    """
    count = int(folds.max()) + 1
    members = [torch.nonzero(folds == k)[:, 0] for k in range(count)]

    def trained(*out: int, strengths: Sequence[float] = STRENGTHS) -> Linear:
        rest = torch.cat([members[k] for k in range(count) if k not in out])
        held = torch.cat([members[k] for k in out])
        return fit(x[rest], y[rest], weigh(rest, held), strengths)

    inner = torch.zeros(count, len(STRENGTHS), dtype=torch.float64)
    for one, other in combinations(range(count), 2):
        linear = trained(one, other)
        for outer, left_out in ((one, members[other]), (other, members[one])):
            found = linear(x[left_out])
            inner[outer] += torch.tensor([score(left_out, f) for f in found]).double()
    chosen = [STRENGTHS[int(index)] for index in inner.argmax(1)]
    predictions = torch.zeros_like(y)
    for k, strength in enumerate(chosen):
        predictions[members[k]] = trained(k, strengths=[strength])(x[members[k]])[0]
    return predictions, chosen
