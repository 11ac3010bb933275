"""Intent classification (IC): several classes for each utterance, all of which must be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError, did_you_mean
from speechfuse.metrics import Evidence, accuracy
from speechfuse.types import Tokens, Trial, Utterance


class Intent(Task):
    """What is to be done, to what and where; the values of the training utterances are known."""

    reads: Prediction = "classes"
    primary, higher_is_better = "intent_accuracy", True

    def __init__(self, *, slots: Sequence[str] = ("action", "object", "location")) -> None:
        """slots: columns that hold the classes, by default Fluent Speech Commands'."""
        self.slots = list(slots)
        self.needs = tuple(slots)
        self.values: dict[str, list[str]] = {}

    def fit(self, utterances: Sequence[Utterance]) -> None:
        self.values = {
            slot: sorted({u.label(slot) or "" for u in utterances}) for slot in self.slots
        }

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Raises DataError for a value that no training utterance has."""
        for u in utterances:
            for slot, known in self.values.items():
                value = u.label(slot) or ""
                if value not in known:
                    raise DataError(
                        f"utterance {u.id}: {slot} '{value}' is in no training utterance; "
                        f"{did_you_mean(value, known)} Mend the manifest"
                    )

    def head_options(self) -> dict[str, Any]:
        return {"slot_sizes": [len(known) for known in self.values.values()]}

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        rows = [
            [known.index(u.label(slot) or "") for slot, known in self.values.items()]
            for u in utterances
        ]
        return Tokens(torch.tensor(rows), torch.full((len(rows),), len(self.slots)))

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        return [
            {
                "id": u.id,
                "speaker": u.speaker or u.id,
                "reference": " | ".join(u.label(slot) or "" for slot in self.slots),
                "prediction": " | ".join(
                    known[i] for known, i in zip(self.values.values(), found, strict=True)
                ),
            }
            for u, found in zip(utterances, predictions, strict=True)
        ]

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        columns = [[row[name] for row in rows] for name in ("reference", "prediction", "speaker")]
        return {"intent_accuracy": accuracy(*columns)}

    def state(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.values = {slot: list(known) for slot, known in state["values"].items()}
