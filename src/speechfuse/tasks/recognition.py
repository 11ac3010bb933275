"""Speech recognition (ASR): characters or pieces of words, word and character error rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError
from speechfuse.metrics import Evidence, error_rate
from speechfuse.tasks.rows import answers, by_set, columns, ids_of, marked, padded
from speechfuse.text import Characters, Pieces, normalise_text
from speechfuse.types import Count, Tokens, Trial, Utterance


class Recognition(Task):
    """Transcribe. Characters of the training texts are the vocabulary, or pieces of their words."""

    reads: Prediction = "tokens"
    needs = ("text",)
    higher_is_better = False

    def __init__(
        self,
        *,
        units: Literal["characters", "bpe"] | None = None,
        vocabulary_size: Count | None = None,
        select_by: Literal["wer", "cer"] = "wer",
        blanks: bool = True,
        apart: str | None = None,
    ) -> None:
        """units: bpe is pieces of words, learned from the training texts: vocabulary_size of them,
        or as many as the texts teach, at most 5000. A recipe that names none has what its head is
        made for: pieces to write, characters for CTC.

        select_by: metric of the development set that selects a checkpoint.

        blanks: false takes them out of all texts, so that cer is what ML-SUPERB scores Chinese and
        Japanese by; what wer is then worth is the share of utterances with an error.

        apart: a column, each of whose values is scored by itself too, such as LibriSpeech's `part`
        for test-clean and test-other.
        """
        self.primary, self.blanks, self.apart = select_by, blanks, apart
        self.units, self.vocabulary_size = units, vocabulary_size
        self.vocabulary: Characters | Pieces = Characters([])
        self._longest = 0

    def _text(self, utterance: Utterance) -> str:
        text = normalise_text(utterance.text or "")
        return text if self.blanks else text.replace(" ", "")

    def fit(self, utterances: Sequence[Utterance]) -> None:
        texts = [self._text(u) for u in utterances]
        if self.units == "bpe":
            self.vocabulary = Pieces.of(texts, self.vocabulary_size)
        else:
            self.vocabulary = Characters.of(texts)
        self._longest = max(len(self.vocabulary.encode(text)) for text in texts)

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Raises DataError if nothing has the column by which results are told apart."""
        if self.apart and not any(u.label(self.apart) for u in utterances):
            raise DataError(
                f"apart: none of {len(utterances)} utterances has '{self.apart}'; name a column "
                "of the corpus, or leave it out"
            )

    def head_options(self) -> dict[str, Any]:
        return {
            "num_tokens": len(self.vocabulary),
            "symbols": self.vocabulary.symbols,
            "longest": self._longest,
        }

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        return padded(self.vocabulary.encode(self._text(u)) for u in utterances)

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        found = (" ".join(self.vocabulary.decode(ids_of(one)).split()) for one in predictions)
        rows = marked(answers(utterances, map(self._text, utterances), found), predictions)
        if self.apart:
            rows = [
                {**row, "set": u.label(self.apart) or ""}
                for row, u in zip(rows, utterances, strict=True)
            ]
        return rows

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        found = _errors(rows)
        for name, some in by_set(rows).items():
            found |= {f"{metric} of {name}": errors for metric, errors in _errors(some).items()}
        return found

    def state(self) -> dict[str, Any]:
        known: dict[str, Any] = (
            {"bpe": self.vocabulary.saved}
            if isinstance(self.vocabulary, Pieces)
            else {"characters": self.vocabulary.symbols}
        )
        return known | {"longest": self._longest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.vocabulary = (
            Pieces(state["bpe"]) if "bpe" in state else Characters(state["characters"])
        )
        self._longest = int(state.get("longest", 0))


def _errors(rows: Sequence[Row]) -> dict[str, Evidence]:
    texts = columns(rows)
    return {"wer": error_rate(*texts), "cer": error_rate(*texts, characters=True)}
