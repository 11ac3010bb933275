"""Labels that a teacher gave: how many a task learns from, and whether the test set is fair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from speechfuse.data.corpus import Corpus
from speechfuse.data.splits import Splits
from speechfuse.data.teachers import FILE, ORIGIN, Card, Seen
from speechfuse.errors import DataError
from speechfuse.types import Utterance

_SPLITS = {"train": "training", "dev": "development", "test": "test"}


@dataclass(frozen=True)
class Origin:
    """The labels of one teacher in a task."""

    card: Card
    counts: Mapping[str, int]  # by split
    of: Mapping[str, int]  # all utterances of the split

    def text(self) -> str:
        """For people: how many, from whom, how sure."""
        shown = [
            f"{count:,} of {self.of[split]:,} {name}"
            for split, name in _SPLITS.items()
            if (count := self.counts.get(split, 0))
        ]
        told = "" if self.card.knows else "; its card does not say what it was trained on"
        return (
            f"{' and '.join(shown)} labels are pseudo-labels of {self.card.name}, with a "
            f"confidence of at least {self.card.threshold:g}{told}"
        )


def find_origins(
    splits: Splits, needs: Sequence[str], corpora: Sequence[Corpus], where: str
) -> list[Origin]:
    """The teachers of the labels that a task needs.

    Raises:
        DataError: labels of a teacher whose card is not there.
    """
    found: dict[str, Counter[str]] = {}
    for split, members in splits.items():
        for name in (name for u in members for name in _origins_of(u, needs)):
            found.setdefault(name, Counter())[split] += 1
    cards = {card.name: card for corpus in corpora for card in corpus.teachers}
    sizes = {split: len(members) for split, members in splits.items()}
    for name in found:
        if name not in cards:
            raise DataError(
                f"{where}: labels are from '{name}', of which there is no card; put the {FILE} "
                "that was made with them beside the manifest, and prepare it again"
            )
    return [Origin(cards[name], counts, sizes) for name, counts in found.items()]


def _origins_of(utterance: Utterance, needs: Sequence[str]) -> Iterator[str]:
    for need in needs:
        if name := utterance.extra.get(f"{need}{ORIGIN}"):
            yield name


def refuse_seen(
    origins: Sequence[Origin], corpus: Corpus, tested: Sequence[Utterance], where: str
) -> None:
    """Refuse to test on whom a teacher of the training labels was trained on.

    Raises:
        DataError: such speakers, with what to do.
    """
    target = seen_in(corpus, tested)
    for origin in origins:
        for seen in origin.card.seen if origin.counts.get("train") else ():
            if both := seen.speakers_of(target):
                shown = ", ".join(sorted(both)[:5]) + (", ..." if len(both) > 5 else "")
                raise DataError(
                    f"{where}: {origin.counts['train']:,} training labels are from the teacher "
                    f"{origin.card.name}, which was itself trained on {seen.corpus}, and "
                    f"{len(both)} test speakers are of it ({shown}), so the scores would flatter; "
                    "expected a test set that no teacher has seen. Use a teacher that has not "
                    "seen it, test on another corpus, or set allow_seen_by_teacher: true"
                )


def seen_in(corpus: Corpus, utterances: Sequence[Utterance]) -> Seen:
    """What somebody knows who has seen these utterances of a corpus."""
    speakers = sorted({u.speaker or u.id for u in utterances})
    return Seen(corpus.name, corpus.source, tuple(speakers))


def extra_utterances(
    corpora: Sequence[Corpus], needs: Sequence[str], splits: Splits, where: str
) -> list[Utterance]:
    """Utterances of other corpora to learn from, without those that are theirs to test.

    Raises:
        DataError: none of them has the labels, an id twice, or somebody or a recording of the
            development or test set.
    """
    if not corpora:
        return []
    held = [(split, u) for split in ("dev", "test") for u in splits[split]]
    speakers = {u.speaker or u.id: split for split, u in held}
    files = {u.audio.resolve(): split for split, u in held}
    names = {path.name for path in files}
    ids = {u.id for members in splits.values() for u in members}
    found: list[Utterance] = []
    for corpus in corpora:
        own = [u for u in corpus.utterances if u.split in (None, "train")]
        usable = [u for u in own if all(u.label(need) for need in needs)]
        place = f"{where}: extra_training {corpus.name}"
        if not usable:
            raise DataError(
                f"{place} has no training utterance with {' and '.join(needs)}; label it with "
                "speechfuse pseudo-label, or leave it out"
            )
        for u in usable:
            speaker = u.speaker or u.id
            if speaker in speakers:
                raise DataError(
                    f"{place} has speaker '{speaker}', who is in the {speakers[speaker]} split; "
                    "leave the speaker out of it, or give another name if it is another person"
                )
            if u.audio.name in names and (split := files.get(u.audio.resolve())):
                raise DataError(
                    f"{place}: utterance '{u.id}' is a recording of the {split} split ({u.audio}); "
                    "leave it out"
                )
            if u.id in ids:
                raise DataError(
                    f"{place}: the id '{u.id}' stands for another utterance already; give ids of "
                    "their own"
                )
            ids.add(u.id)
        found += usable
    return found
