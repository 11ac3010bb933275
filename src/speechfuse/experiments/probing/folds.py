"""Partitions in which whatever belongs to one speaker, or to one text, is never apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechfuse.errors import DataError
from speechfuse.ops import seed_for


def group_folds(groups: Sequence[str], folds: int, seed: int, noun: str = "speakers") -> list[int]:
    """The fold of each row, all rows of one group in one fold; the groups are drawn by `seed`.

    Raises:
        DataError: fewer groups than folds.
    """
    names = sorted(set(groups))
    if len(names) < folds:
        raise DataError(
            f"folds: {folds} folds need as many {noun}, there are {len(names)}; lower folds, "
            "at least 3, or use a corpus with more"
        )
    order = np.random.default_rng(seed_for(seed, "folds")).permutation(len(names)).tolist()
    place = {names[index]: rank % folds for rank, index in enumerate(order)}
    return [place[group] for group in groups]
