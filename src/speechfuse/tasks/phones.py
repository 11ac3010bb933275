"""Phone recognition (PR): phones of a column or by a lexicon, phone error rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechfuse.contracts import Prediction, Row, Task
from speechfuse.errors import DataError
from speechfuse.metrics import Evidence, error_rate
from speechfuse.tasks.rows import answers, columns, ids_of, marked, padded
from speechfuse.text import Characters
from speechfuse.types import Tokens, Trial, Utterance


class Phones(Task):
    """Name the phones. Those of the training utterances are the vocabulary."""

    reads: Prediction = "tokens"
    primary, higher_is_better = "per", False

    def __init__(self, *, lexicon: str | Sequence[str] | None = None) -> None:
        """lexicon: files of lines `WORD PH0 PH1 ...` by which texts become phones, the first line
        of a word counts, as in SUPERB (librispeech-lexicon-200k-g2p.txt and -allothers-g2p.txt of
        s3prl). It must have every word. Without one, the column `phones` has phones and blanks.
        """
        self.lexicon = [lexicon] if isinstance(lexicon, str) else list(lexicon or ())
        self.needs = ("text",) if self.lexicon else ("phones",)
        self.characters = Characters([])
        self._longest = 0
        self._spoken: dict[str, list[str]] = {}

    def phones(self, utterance: Utterance) -> list[str]:
        """Raises DataError for a word that the lexicon lacks."""
        if not self.lexicon:
            return (utterance.label("phones") or "").split()
        self._spoken = self._spoken or read_lexicon(self.lexicon)
        words = (utterance.text or "").upper().split()
        if lacking := [word for word in words if word not in self._spoken]:
            raise DataError(
                f"utterance {utterance.id}: {', '.join(lacking[:3])} not in "
                f"{' or '.join(self.lexicon)}; add the word, or give the column phones"
            )
        return [phone for word in words for phone in self._spoken[word]]

    def fit(self, utterances: Sequence[Utterance]) -> None:
        spoken = [self.phones(u) for u in utterances]
        self.characters = Characters(sorted({p for phones in spoken for p in phones}))
        self._longest = max(map(len, spoken))

    def check(self, utterances: Sequence[Utterance]) -> None:
        for u in utterances:
            self.phones(u)

    def head_options(self) -> dict[str, Any]:
        return {
            "num_tokens": len(self.characters),
            "symbols": self.characters.symbols,
            "longest": self._longest,
        }

    def targets(self, utterances: Sequence[Utterance]) -> Tokens:
        return padded(self.characters.encode(self.phones(u)) for u in utterances)

    def table(
        self,
        utterances: Sequence[Utterance],
        predictions: Sequence[Any],
        trials: Sequence[Trial],
    ) -> list[Row]:
        references = (" ".join(self.phones(u)) for u in utterances)
        found = (self.characters.decode(ids_of(one), " ") for one in predictions)
        return marked(answers(utterances, references, found), predictions)

    def score(self, rows: Sequence[Row]) -> dict[str, Evidence]:
        return {"per": error_rate(*columns(rows))}

    def state(self) -> dict[str, Any]:
        return {"phones": self.characters.symbols, "longest": self._longest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.characters = Characters(state["phones"])
        self._longest = int(state.get("longest", 0))


def read_lexicon(files: Sequence[str]) -> dict[str, list[str]]:
    """Phones of every word, in capitals; of several pronunciations the first.

    Raises:
        DataError: no such file, or a word without phones.
    """
    found: dict[str, list[str]] = {}
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no lexicon at {path}; expected lines 'WORD PH0 PH1 ...'")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            word, *phones = line.split() or ("",)
            if word and not phones:
                raise DataError(
                    f"{path}, line {number}: found '{line}', expected a word and its phones"
                )
            if word:
                found.setdefault(word.upper(), phones)
    return found
