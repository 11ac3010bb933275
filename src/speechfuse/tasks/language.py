"""Language identification (LID) as ML-SUPERB asks it: a text whose one token is the language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from speechfuse.contracts import Prediction
from speechfuse.tasks.classification import Classification
from speechfuse.tasks.rows import ids_of, padded
from speechfuse.types import Tokens, Utterance


class LanguageToken(Classification):
    """Write the language, for a head of tokens; of several the first counts, as in ESPnet.

    A classifier that pools frames is task `classification` with label `language`.
    """

    reads: Prediction = "tokens"

    def __init__(
        self,
        *,
        label: str = "language",
        labels: Sequence[str] | None = None,
        select_by: Literal["accuracy", "balanced_accuracy"] = "accuracy",
    ) -> None:
        """label, labels, select_by: as of task classification."""
        super().__init__(label=label, labels=labels, select_by=select_by)

    def head_options(self) -> dict[str, Any]:
        return {"num_tokens": len(self.labels) + 1, "symbols": self.labels}

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        """Ids from 1, 0 is the blank of CTC."""
        return padded([self.labels.index(u.label(self.label) or "") + 1] for u in utterances)

    def named(self, prediction: Any) -> str:
        """Nothing written is no language, and wrong."""
        ids = ids_of(prediction)
        return self.labels[ids[0] - 1] if ids else ""
