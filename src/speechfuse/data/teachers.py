"""What a teacher that labelled a corpus has been trained on: a card that travels with its labels.

teachers.json, beside a manifest and in the corpus made of it, has a card for each teacher that a
column like emotion_origin names. Where test speakers stand on it, a student's score would flatter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechfuse.errors import DataError

FILE = "teachers.json"
ORIGIN, CONFIDENCE, GIVEN = "_origin", "_confidence", "_given"  # after the name of a label

# The 32 corpora of EmoBox (Ma et al. 2024, arXiv:2406.07162), from its repository.
_EMOBOX_LIST = """
aesdd ased asvpesd cafe casia cremad emns emodb emovdb emovo emozionalmente enterface esd iemocap
jlcorpus m3ed mead meld mer2023 mesd msppodcast oreau pavoque polish ravdess resd savee shemo
subesco tess turevdb urdu
"""
_EMOBOX = tuple(_EMOBOX_LIST.split())
# What a name on a card stands for: SUPERB's emotion task is IEMOCAP.
_STANDS_FOR = {"emobox": _EMOBOX, "superb": ("iemocap",)}
# What models say in words only: emotion2vec+ seed was fine-tuned on EmoBox, base and large descend
# from it; the SUPERB models for emotion (-er) on IEMOCAP.
_KNOWN_MODELS = {"emotion2vec_plus": "emobox", "emotion2vec+": "emobox", "superb-er": "superb"}


@dataclass(frozen=True)
class Seen:
    """A corpus that somebody was trained on, with the speakers if they are known."""

    corpus: str
    source: str | None = None  # the reader's name, if it was read as its owner ships it
    speakers: tuple[str, ...] | None = None  # None: any of them

    def speakers_of(self, other: Seen) -> set[str]:
        """Speakers of another corpus that stand here too; none if it is another one."""
        names = {canonical(name) for name in (self.corpus, self.source) if name}
        theirs = {canonical(name) for name in (other.corpus, other.source) if name}
        if not names & theirs:
            return set()
        found = set(other.speakers or ())
        return found if self.speakers is None else found & set(self.speakers)


@dataclass(frozen=True)
class Card:
    """A teacher whose labels a corpus has."""

    name: str  # what stands in the column of origins
    teacher: str  # a folder, or a name on the hub
    threshold: float  # least confidence of its labels
    labelled: str  # the corpus that it gave them to
    seen: tuple[Seen, ...]
    knows: bool = True  # what it was trained on; otherwise `seen` is empty because nobody told


def canonical(name: str) -> str:
    """A corpus's name without owner, case, version and punctuation.

    >>> canonical("AbstractTTS/IEMOCAP_v2"), canonical("corpora/crema-d"), canonical("My Tones 2")
    ('iemocap', 'cremad', 'mytones2')
    """
    last = name.rstrip("/").split("/")[-1].lower()
    words = re.findall(r"[a-z]+[0-9]*", last)
    for size in (1, 2, 3):
        for start in range(len(words) - size + 1):
            joined = "".join(words[start : start + size])
            for known in (joined, joined.rstrip("0123456789")):
                if known in _EMOBOX:
                    return known
    return re.sub(r"[^a-z0-9]", "", last)


def seen_of_names(names: Iterable[str]) -> tuple[Seen, ...]:
    """Corpora named on a card; a collection is all that is in it."""
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_STANDS_FOR.get(canonical(name), (name,))))
    return tuple(Seen(name) for name in found)


def known_models(names: Iterable[str]) -> list[str]:
    """What is known of models by such names beside what their cards list."""
    texts = [name.lower() for name in names]
    return [seen for part, seen in _KNOWN_MODELS.items() if any(part in text for text in texts)]


def write_cards(folder: Path, cards: Sequence[Card]) -> None:
    """All cards of a corpus or a manifest, into its folder."""
    text = json.dumps([asdict(card) for card in cards], indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n")


def read_cards(folder: Path) -> tuple[Card, ...]:
    """The cards in a folder, none if there is no such file.

    Raises:
        DataError: a file that is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        cards = json.loads(path.read_text())
        return tuple(Card(**{**card, "seen": seen_from(card["seen"])}) for card in cards)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error}); copy it again from where the labels were made"
        ) from error


def seen_from(entries: Sequence[dict[str, Any]]) -> tuple[Seen, ...]:
    """Out of JSON."""
    found = []
    for entry in entries:
        speakers = entry["speakers"]
        found.append(Seen(**{**entry, "speakers": None if speakers is None else tuple(speakers)}))
    return tuple(found)
