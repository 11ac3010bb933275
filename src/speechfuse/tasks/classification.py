"""One class for each utterance: emotion, language or any other column of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError, RecipeError, did_you_mean
from speechfuse.metrics import Evidence, accuracy, balanced_accuracy
from speechfuse.tasks.rows import answers, columns, padded
from speechfuse.types import Positive, Tokens, Trial, Utterance


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
        class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none",
    ) -> None:
        """label: column that holds the class. labels: the classes.

        select_by: metric of the development set that selects a checkpoint.

        class_weights: how much an utterance of each class counts in the loss; by name, 1 where
        none is given; balanced: such that all classes of the training set count alike in sum.
        """
        self.label, self.labels = label, sorted(labels or [])
        self.class_weights = class_weights
        self.weights: list[float] | None = None  # in the order of the labels
        self.primary = select_by
        self.needs = (label,)
        self._given = labels is not None

    def fit(self, utterances: Sequence[Utterance]) -> None:
        if not self._given:
            self.labels = sorted({u.label(self.label) or "" for u in utterances})

    def weigh(self, utterances: Sequence[Utterance]) -> None:
        """Raises RecipeError for the weight of a class that is not there."""
        if isinstance(self.class_weights, dict):
            for name in self.class_weights:
                if name not in self.labels:
                    hint = did_you_mean(name, self.labels)
                    raise RecipeError(f"class_weights: no {self.label} '{name}'; {hint}")
            self.weights = [self.class_weights.get(name, 1.0) for name in self.labels]
        elif self.class_weights == "balanced":
            counts = Counter(u.label(self.label) for u in utterances)
            # A class that nobody has is in no target: what it would weigh does not matter.
            each = len(utterances) / len(counts)
            self.weights = [each / (counts[name] or each) for name in self.labels]

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
        weighed = {} if self.weights is None else {"loss_weights": self.weights}
        return {"num_classes": len(self.labels), **weighed}

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
        weighed = {} if self.weights is None else {"weights": self.weights}
        return {"labels": self.labels, **weighed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.labels = list(state["labels"])
        self.weights = state.get("weights")
