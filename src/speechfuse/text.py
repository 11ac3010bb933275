"""Characters, phones and pieces of words as units, and the normaliser beside every error rate."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

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
            raise unknown_symbols(text, unknown)
        return [self._ids[c] for c in text]

    def decode(self, ids: Iterable[int], between: str = "") -> str:
        """between: what stands between two symbols."""
        return between.join(self.symbols[i - 1] for i in ids if i)


MOST_PIECES = 5000  # as usual for LibriSpeech's 960 hours


class Pieces:
    """Pieces of words by byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909); id 0 is none.

    Learned and applied by the library tokenizers.
    """

    def __init__(self, saved: str) -> None:
        """saved: the tokenizer as JSON."""
        from tokenizers import Tokenizer

        self.saved = saved
        self._tokenizer: Any = Tokenizer.from_str(saved)
        known = self._tokenizer.get_vocab()
        self.symbols = sorted(known, key=lambda piece: int(known[piece]))[1:]

    @classmethod
    def of(cls, texts: Iterable[str], size: int | None = None) -> Pieces:
        """Learn from normalised texts. size: number of ids; one for 50 characters if left out."""
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        from tokenizers.decoders import Metaspace

        read = list(texts)
        characters = sorted(set("".join(read)) - {" "})
        if size is None:
            size = min(MOST_PIECES, sum(map(len, read)) // 50)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=max(size, 2 * len(characters)),
            special_tokens=["<end>"],
            initial_alphabet=characters,
            show_progress=False,
        )
        tokenizer.train_from_iterator(read, trainer)
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        """Number of ids with the one that is no piece."""
        return len(self.symbols) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised text.

        Raises:
            DataError: a character that the training texts lack.
        """
        unknown = sorted(set(text) - {" "} - {c for c in self.symbols if len(c) == 1})
        if unknown:
            raise unknown_symbols(text, unknown)
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._tokenizer.decode([i for i in ids if i])
        return text


def unknown_symbols(text: Sequence[str], unknown: Sequence[str]) -> DataError:
    """What to say of a text with symbols that a vocabulary lacks."""
    shown = text[:60] if isinstance(text, str) else " ".join(text[:20])
    return DataError(
        f"text '{shown}' has {list(unknown)}, which the training texts never have; "
        "remove the utterance or train with these characters"
    )
