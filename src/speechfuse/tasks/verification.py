"""Speaker verification (SV): do two utterances have one speaker? Cosine of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError
from speechfuse.metrics import Evidence, SpeakerTrials
from speechfuse.tasks.rows import padded
from speechfuse.types import Tokens, Trial, Utterance


class Verification(Task):
    """Tell speakers apart. Heads learn to name the training speakers, trials have others.

    standardize: give every dimension of the embeddings zero mean and unit variance over the split,
    which takes no labels; without it a few large dimensions decide the cosine. Only trials are
    standardised: `predict` on a few files gives the plain cosine and says so.
    """

    reads: Prediction = "vector"
    needs = ("speaker",)
    primary, higher_is_better = "eer", False
    min_speakers = 2  # pairs of two speakers are needed

    def __init__(self, *, standardize: bool = False) -> None:
        self.standardize = standardize
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
        if self.standardize:
            stacked = (stacked - stacked.mean(0)) / stacked.std(0, correction=0).clamp_min(1e-5)
        units = torch.nn.functional.normalize(stacked, dim=1, eps=1e-12).numpy()
        vectors = {u.id: unit for u, unit in zip(utterances, units, strict=True)}
        here = [t for t in trials if t.enrolment in vectors and t.test in vectors]
        self.check_trials(here)
        return [
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

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        pairs = [(row["enrolment_speaker"], row["test_speaker"]) for row in rows]
        speakers = sorted({name for pair in pairs for name in pair})
        index = {name: i for i, name in enumerate(speakers)}
        indices = np.array([[index[a], index[b]] for a, b in pairs])
        trials = SpeakerTrials(
            speakers,
            indices[:, 0],
            indices[:, 1],
            np.array([row["same"] == "1" for row in rows]),
            np.array([float(row["score"]) for row in rows]),
        )
        return {"eer": trials}

    def state(self) -> dict[str, Any]:
        return {"speakers": self.speakers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.speakers = list(state["speakers"])
