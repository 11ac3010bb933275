"""One class for each utterance: emotion, language or any other column of the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError, did_you_mean
from speechfuse.metrics import Evidence, accuracy, balanced_accuracy
from speechfuse.tasks.rows import answers, columns, padded
from speechfuse.types import Tokens, Trial, Utterance


class Classification(Task):
    """Name the class. Classes are given, or those of the training utterances; others are errors."""

    reads: Prediction = "class"
    higher_is_better = True

    def __init__(
        self,
        *,
        label: str = "emotion",
        labels: Sequence[str] | None = None,
        select_by: Literal["accuracy", "balanced_accuracy"] = "balanced_accuracy",
    ) -> None:
        """label: column that holds the class. labels: the classes.

        select_by: metric of the development set that selects a checkpoint.
        """
        self.label, self.labels = label, sorted(labels or [])
        self.primary = select_by
        self.needs = (label,)
        self._given = labels is not None

    def fit(self, utterances: Sequence[Utterance]) -> None:
        if not self._given:
            self.labels = sorted({u.label(self.label) or "" for u in utterances})

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Raises DataError for a label outside the set."""
        for u in utterances:
            label = u.label(self.label) or ""
            if label not in self.labels:
                hint = did_you_mean(label, self.labels)
                raise DataError(
                    f"utterance {u.id}: {self.label} '{label}' is outside the label set; {hint} "
                    "Mend the manifest, or the task's labels"
                )

    def head_options(self) -> dict[str, Any]:
        return {"num_classes": len(self.labels)}

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        return padded([self.labels.index(u.label(self.label) or "")] for u in utterances)

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        references = (u.label(self.label) or "" for u in utterances)
        return answers(utterances, references, map(self.named, predictions))

    def named(self, prediction: Any) -> str:
        """The class that a head's prediction stands for."""
        label: str = self.labels[prediction]
        return label

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        classes = columns(rows)
        return {"accuracy": accuracy(*classes), "balanced_accuracy": balanced_accuracy(*classes)}

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.labels = list(state["labels"])
