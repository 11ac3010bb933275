"""Characters and phones as units, and the normaliser that stands beside every error rate."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from speechfuse.errors import DataError

NORMALISER = "lower case, letters of any script, digits and apostrophes, single spaces"


def normalise_text(text: str) -> str:
    """Text as it is learned and scored.

    >>> normalise_text("Der Lappen liegt auf dem Eisschrank.")
    'der lappen liegt auf dem eisschrank'
    """
    lowered = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in lowered)
    return " ".join(kept.split())


class Characters:
    """Characters, or other symbols, and their ids; id 0 is the blank of CTC and no symbol."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._ids = {symbol: index + 1 for index, symbol in enumerate(self.symbols)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        """Every character of these texts, which must be normalised."""
        return cls(sorted(set("".join(texts))))

    def __len__(self) -> int:
        """Number of ids with the blank."""
        return len(self.symbols) + 1

    def encode(self, text: Sequence[str]) -> list[int]:
        """Ids of a normalised text, or of symbols.

        Raises:
            DataError: a symbol that the vocabulary lacks.
        """
        unknown = sorted(set(text) - set(self._ids))
        if unknown:
            shown = text[:60] if isinstance(text, str) else " ".join(text[:20])
            raise DataError(
                f"text '{shown}' has {unknown}, which the training texts never have; "
                "remove the utterance or train with these characters"
            )
        return [self._ids[c] for c in text]

    def decode(self, ids: Iterable[int], between: str = "") -> str:
        """between: what stands between two symbols."""
        return between.join(self.symbols[i - 1] for i in ids if i)
