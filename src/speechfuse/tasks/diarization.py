"""Speaker diarization (SD): who speaks when, of a known number of speakers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError
from speechfuse.metrics import Evidence
from speechfuse.tasks.rows import answers, columns, padded
from speechfuse.turns import (
    Turn,
    diarization_error_rate,
    format_turns,
    parse_turns,
    speakers_of,
)
from speechfuse.types import Tokens, Trial, Utterance


class Diarization(Task):
    """Find the turns of each speaker, whoever they are (as in SUPERB, arXiv:2105.01051).

    The corpus has a column `turns`: `anna 0.00 1.25; ben 0.90 2.40`. The label `speaker` of such
    an utterance is what keeps splits apart and is resampled, for example the pair.
    """

    reads: Prediction = "turns"
    needs = ("turns",)
    primary, higher_is_better = "der", False

    def __init__(self) -> None:
        self.speakers = 0

    def fit(self, utterances: Sequence[Utterance]) -> None:
        self.speakers = max(len(speakers_of(_turns(u))) for u in utterances)

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Raises DataError for turns that cannot be read, or of more speakers than in training."""
        for u in utterances:
            names = speakers_of(_turns(u))
            if len(names) > self.speakers:
                raise DataError(
                    f"utterance {u.id} has {len(names)} speakers, those for training at most "
                    f"{self.speakers}; leave it out, or train with more"
                )

    def head_options(self) -> dict[str, Any]:
        return {"num_classes": self.speakers}

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        """Triples of speaker, start and end in milliseconds: frames are the head's business."""
        rows = []
        for u in utterances:
            turns = _turns(u)
            names = speakers_of(turns)
            triples = (
                (names.index(t.speaker), round(1000 * t.start), round(1000 * t.end)) for t in turns
            )
            rows.append([*chain.from_iterable(triples)])
        return padded(rows)

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        found = (
            format_turns(Turn(str(i + 1), *times) for i, *times in turns) for turns in predictions
        )
        return answers(utterances, (u.label("turns") or "" for u in utterances), found)

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        return {"der": diarization_error_rate(*columns(rows))}

    def state(self) -> dict[str, Any]:
        return {"speakers": self.speakers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.speakers = int(state["speakers"])


def _turns(utterance: Utterance) -> list[Turn]:
    try:
        return parse_turns(utterance.label("turns") or "")
    except DataError as error:
        raise DataError(f"utterance {utterance.id}: {error}") from error
