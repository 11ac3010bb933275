"""What a task's data is, for the record of a run: how much, of whom, and who is in two splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from speechfuse.data.splits import Splits
from speechfuse.metrics import LEAST

_EARLIER = {"train": (), "dev": ("train",), "test": ("train", "dev")}
_LONG = {"train": "training", "dev": "development", "test": "test"}


@dataclass(frozen=True)
class SplitSummary:
    """One split, as it was recorded: copies for training are not counted."""

    utterances: int
    hours: float  # of what has a known duration
    speakers: int  # who are named
    without_speaker: int  # utterances
    known_speakers: int = 0  # who are in an earlier split: in train, or in train or dev
    of_known: int = 0  # utterances of these
    labels: dict[str, int] = field(default_factory=dict)  # utterances by class


@dataclass(frozen=True)
class DataSummary:
    """A task's data by split; only a test split where nothing is trained."""

    corpora: tuple[str, ...]
    splits: dict[str, SplitSummary]
    drawn_within_speakers: bool = False  # the development set, as the recipe asks
    names_speakers: bool = False  # who speaks is the class, so all splits have the same

    @classmethod
    def read(cls, about: dict[str, Any]) -> DataSummary:
        """From what `to_dict` gave."""
        splits = {name: SplitSummary(**one) for name, one in about["splits"].items()}
        return cls(**{**about, "corpora": tuple(about["corpora"]), "splits": splits})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def apart(self, split: str = "test") -> str:
        """Whether the speakers of a split are others than those of the earlier ones, in words."""
        earlier = [_LONG[one] for one in _EARLIER[split] if one in self.splits]
        if self.names_speakers:
            return f"it names speakers, so those of {split} are those of training"
        if not earlier:
            return f"nothing is trained, and {split} has all speakers"
        one, others = self.splits[split], " and ".join(earlier)
        unnamed = (
            f"; {one.without_speaker:,} of its {one.utterances:,} utterances have no speaker, so "
            "of them nobody can tell"
            if one.without_speaker
            else ""
        )
        if not one.speakers:
            return f"{split} has no speakers, so nobody can tell whether they are in {others}, too"
        if not one.known_speakers:
            return f"none of the {one.speakers} speakers of {split} is in {others}{unnamed}"
        share = 100 * one.of_known / one.utterances
        return (
            f"{one.known_speakers} of the {one.speakers} speakers of {split} are in {others}, "
            f"too, with {share:.0f} % of its utterances{unnamed}"
        )

    def warnings(self) -> list[str]:
        """What was not asked for and flatters scores."""
        if self.names_speakers or "train" not in self.splits:
            return []
        found = []
        if self.splits["test"].known_speakers:
            found.append(
                f"{self.apart('test')}, so its scores say little about other voices; name "
                "split.test_speakers, or mend the corpus's split column"
            )
        if self.splits["dev"].known_speakers and not self.drawn_within_speakers:
            found.append(
                f"{self.apart('dev')}, so the best step and thresholds are found on voices that "
                "were learned; name split.dev_speakers, or mend the corpus's split column"
            )
        return found

    def few(self) -> list[str]:
        """What is found on the development set, where that has few speakers."""
        count = self.splits["dev"].speakers if "dev" in self.splits else 0
        if self.names_speakers or self.drawn_within_speakers or not 0 < count < LEAST:
            return []
        return [
            f"development has {count} speaker{'s' * (count > 1)}, so the best step and thresholds "
            f"are found on few voices, and its scores have {'too narrow' if count > 1 else 'no'} "
            "intervals; name more in split.dev_speakers"
        ]


NOTHING = DataSummary((), {})  # of data that nobody trains on


def summarise(
    corpora: Sequence[str],
    splits: Splits,
    classes: Sequence[str],
    *,
    all_test: bool = False,
    drawn_within_speakers: bool = False,
) -> DataSummary:
    """classes: columns that a class is made of, none for other tasks."""
    kept = ("test",) if all_test else ("train", "dev", "test")
    speakers = {split: {u.speaker for u in splits[split] if u.speaker} for split in kept}
    found = {}
    for split in kept:
        members = splits[split]
        known = {one for earlier in _EARLIER[split] for one in speakers.get(earlier, ())}
        labels = Counter(" | ".join(u.label(c) or "" for c in classes) for u in members)
        found[split] = SplitSummary(
            utterances=len(members),
            hours=round(sum(u.duration or 0.0 for u in members) / 3600, 4),
            speakers=len(speakers[split]),
            without_speaker=sum(not u.speaker for u in members),
            known_speakers=len(speakers[split] & known),
            of_known=sum(u.speaker in known for u in members),
            labels=dict(sorted(labels.items())) if classes else {},
        )
    named = "speaker" in classes
    return DataSummary(tuple(corpora), found, drawn_within_speakers, named)
