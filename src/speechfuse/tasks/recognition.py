"""Speech recognition (ASR): texts in characters, word and character error rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.metrics import Evidence, error_rate
from speechfuse.tasks.rows import answers, columns, padded
from speechfuse.text import Characters, normalise_text
from speechfuse.types import Tokens, Trial, Utterance


class Recognition(Task):
    """Transcribe. The characters of the training texts are the vocabulary."""

    reads: Prediction = "tokens"
    needs = ("text",)
    higher_is_better = False

    def __init__(self, *, select_by: Literal["wer", "cer"] = "wer", blanks: bool = True) -> None:
        """select_by: metric of the development set that selects a checkpoint.

        blanks: false takes them out of all texts, so that cer is what ML-SUPERB scores Chinese and
        Japanese by; what wer is then worth is the share of utterances with an error.
        """
        self.primary, self.blanks = select_by, blanks
        self.characters = Characters([])

    def _text(self, utterance: Utterance) -> str:
        text = normalise_text(utterance.text or "")
        return text if self.blanks else text.replace(" ", "")

    def fit(self, utterances: Sequence[Utterance]) -> None:
        self.characters = Characters.of(self._text(u) for u in utterances)

    def head_options(self) -> dict[str, Any]:
        return {"num_tokens": len(self.characters), "symbols": self.characters.symbols}

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        return padded(self.characters.encode(self._text(u)) for u in utterances)

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        found = (" ".join(self.characters.decode(ids).split()) for ids in predictions)
        return answers(utterances, map(self._text, utterances), found)

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        texts = columns(rows)
        return {
            "wer": error_rate(*texts),
            "cer": error_rate(*texts, characters=True),
        }

    def state(self) -> dict[str, Any]:
        return {"characters": self.characters.symbols}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.characters = Characters(state["characters"])
