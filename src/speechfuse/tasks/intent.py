"""Intent classification (IC): several classes for each utterance, all of which must be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError, did_you_mean
from speechfuse.metrics import Evidence, accuracy
from speechfuse.tasks.rows import answers, columns, padded
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
        return padded(
            [known.index(u.label(slot) or "") for slot, known in self.values.items()]
            for u in utterances
        )

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        references = (" | ".join(u.label(slot) or "" for slot in self.slots) for u in utterances)
        found = (
            " | ".join(known[i] for known, i in zip(self.values.values(), ids, strict=True))
            for ids in predictions
        )
        return answers(utterances, references, found)

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        return {"intent_accuracy": accuracy(*columns(rows))}

    def state(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.values = {slot: list(known) for slot, known in state["values"].items()}
