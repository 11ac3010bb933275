"""Speaker verification (SV): do two utterances have one speaker? Cosine of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.decision import Criterion, Decision, decide
from speechfuse.errors import DataError
from speechfuse.metrics import Evidence, SpeakerTrials
from speechfuse.tasks.rows import padded
from speechfuse.types import Tokens, Trial, Utterance


class Verification(Task):
    """Tell speakers apart. Heads learn to name the training speakers, trials have others.

    standardize: give every dimension of the embeddings zero mean and unit variance over the split,
    which takes no labels; without it a few large dimensions decide the cosine. Only trials are
    standardised: `predict` on a few files gives the plain cosine and says so.

    threshold: of the plain cosine, above which two are one speaker: where both errors are equal on
    development trials, or where the cost is least if a share of p_target is of one speaker.
    """

    reads: Prediction = "vector"
    needs = ("speaker",)
    primary, higher_is_better = "eer", False
    min_speakers = 2  # pairs of two speakers are needed

    def __init__(
        self,
        *,
        standardize: bool = False,
        threshold: Criterion = "eer",
        p_target: Annotated[float, Field(gt=0, lt=1)] = 0.05,
    ) -> None:
        self.standardize = standardize
        self.threshold, self.p_target = threshold, p_target
        self.speakers: list[str] = []

    def fit(self, utterances: Sequence[Utterance]) -> None:
        self.speakers = sorted({u.speaker or "" for u in utterances})

    def head_options(self) -> dict[str, Any]:
        return {"num_classes": len(self.speakers)}

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        return padded([self.speakers.index(u.speaker or "")] for u in utterances)

    def check_trials(self, trials: Sequence[Trial]) -> None:
        """Raises DataError unless there are pairs of one speaker and of two."""
        same = sum(t.same for t in trials)
        if not 0 < same < len(trials):
            raise DataError(
                f"{same} trials of one speaker and {len(trials) - same} of two; verification needs "
                "both: add trials, or speakers with several utterances"
            )

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        """One row for each trial whose two utterances are here."""
        speaker = {u.id: u.speaker or u.id for u in utterances}
        stacked = torch.stack([v.double() for v in predictions])
        plain = stacked
        if self.standardize:
            stacked = (stacked - stacked.mean(0)) / stacked.std(0, correction=0).clamp_min(1e-5)
        vectors = _units(utterances, stacked)
        here = [t for t in trials if t.enrolment in vectors and t.test in vectors]
        self.check_trials(here)
        rows = [
            {
                "enrolment": t.enrolment,
                "test": t.test,
                "enrolment_speaker": speaker[t.enrolment],
                "test_speaker": speaker[t.test],
                "same": str(int(t.same)),
                "score": f"{vectors[t.enrolment] @ vectors[t.test]:.6f}",
            }
            for t in here
        ]
        if not self.standardize:
            return rows
        units = _units(utterances, plain)
        cosines = [f"{units[t.enrolment] @ units[t.test]:.6f}" for t in here]
        return [{**row, "cosine": cosine} for row, cosine in zip(rows, cosines, strict=True)]

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        return {"eer": _scored(rows, "score")}

    def decision(self, development: Sequence[Row], test: Sequence[Row]) -> Decision:
        """Of the plain cosine, which is what two files alone have."""
        column = "cosine" if self.standardize else "score"
        known, new = _scored(development, column), _scored(test, column)
        return decide(known, new, self.threshold, self.p_target)

    def state(self) -> dict[str, Any]:
        return {"speakers": self.speakers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.speakers = list(state["speakers"])


def _scored(rows: Sequence[Row], column: str) -> SpeakerTrials:
    """Trials with the scores of a column."""
    pairs = [(row["enrolment_speaker"], row["test_speaker"]) for row in rows]
    speakers = sorted({name for pair in pairs for name in pair})
    index = {name: i for i, name in enumerate(speakers)}
    indices = np.array([[index[a], index[b]] for a, b in pairs])
    return SpeakerTrials(
        speakers,
        indices[:, 0],
        indices[:, 1],
        np.array([row["same"] == "1" for row in rows]),
        np.array([float(row[column]) for row in rows]),
    )


def _units(utterances: Sequence[Utterance], vectors: Tensor) -> dict[str, NDArray[np.float64]]:
    """Vectors of unit length by utterance."""
    units = torch.nn.functional.normalize(vectors, dim=1, eps=1e-12).numpy()
    return {u.id: unit for u, unit in zip(utterances, units, strict=True)}
