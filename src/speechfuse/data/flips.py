"""Labels that are made wrong on purpose, to see how much of that a model can bear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechfuse.errors import DataError
from speechfuse.ops import seed_for
from speechfuse.types import Utterance


def flip_labels(
    utterances: Sequence[Utterance], label: str, share: float, where: str
) -> list[Utterance]:
    """Each utterance with this probability under another class, all others equally likely.

    Drawn from the utterance's id alone, so that what is flipped at 10 % is flipped in the same way
    at 20 %, in every run.

    Raises:
        DataError: there is only one class.
    """
    classes = sorted({u.label(label) or "" for u in utterances})
    if len(classes) < 2:
        raise DataError(
            f"{where}: flip_labels needs two classes or more, '{label}' is always '{classes[0]}'; "
            "leave it out"
        )
    found = []
    for u in utterances:
        random = np.random.default_rng(seed_for(0, "flip", label, u.id))
        if random.random() >= share:
            found.append(u)
            continue
        others = [name for name in classes if name != u.label(label)]
        found.append(u.labelled(label, others[int(random.integers(len(others)))]))
    return found
