"""What the tasks of one answer for each utterance share: rows of a table, and padded targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from speechfuse.contracts import Row
from speechfuse.types import Generated, Tokens, Utterance


def answers(
    utterances: Sequence[Utterance], references: Iterable[str], predictions: Iterable[str]
) -> list[Row]:
    """One row for each utterance; without a speaker it is resampled by itself."""
    return [
        {"id": u.id, "speaker": u.speaker or u.id, "reference": wanted, "prediction": found}
        for u, wanted, found in zip(utterances, references, predictions, strict=True)
    ]


def ids_of(prediction: Any) -> list[int]:
    """Token ids of one utterance, however a head found them."""
    ids: list[int] = prediction.ids if isinstance(prediction, Generated) else prediction
    return ids


def marked(rows: list[Row], predictions: Sequence[Any]) -> list[Row]:
    """The rows; if texts were generated, with a column that says which were cut."""
    if not any(isinstance(one, Generated) for one in predictions):
        return rows
    return [
        {**row, "cut": "yes" if one.cut else ""} for row, one in zip(rows, predictions, strict=True)
    ]


def columns(rows: Sequence[Row]) -> tuple[list[str], list[str], list[str]]:
    """References, predictions and speakers of such rows, as metrics take them."""
    wanted, found, speakers = (
        [row[name] for row in rows] for name in ("reference", "prediction", "speaker")
    )
    return wanted, found, speakers


def by_set(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Those of each set that is also scored apart, by its name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if name := row.get("set"):
            found.setdefault(name, []).append(row)
    return dict(sorted(found.items()))


def padded(rows: Iterable[Sequence[int]]) -> Tokens:
    """Ids of several utterances, zeros on the right."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    return Tokens(pad_sequence(ids, batch_first=True), lengths)
