"""A prepared corpus: Lhotse manifests and trials in one folder, read as utterances.

recordings.jsonl  supervisions.jsonl  cuts.jsonl    Lhotse's, so that its tools read them
trials.tsv                                          label, enrolment, test (if there are any)
teachers.json                                       who gave labels that no person gave (if any)
corpus.json                                         name and counts
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechfuse.data.teachers import FILE as TEACHERS
from speechfuse.data.teachers import Card, read_cards, write_cards
from speechfuse.errors import DataError, damage
from speechfuse.types import Trial, Utterance

if TYPE_CHECKING:
    from lhotse.cut import Cut

_LABELS = ("emotion", "split")  # what Lhotse's supervisions have no field for
_FORMAT = 1
_OURS = {
    "recordings.jsonl",
    "supervisions.jsonl",
    "cuts.jsonl",
    "trials.tsv",
    TEACHERS,
    "corpus.json",
    "synthetic.json",
    "audio",
}


@dataclass(frozen=True)
class Corpus:
    """Utterances in a fixed order, and trials if the corpus has its own."""

    name: str
    folder: Path
    utterances: tuple[Utterance, ...]
    trials: tuple[Trial, ...] = ()
    source: str | None = None  # the corpus that it is, or is made of, if that is known
    teachers: tuple[Card, ...] = ()  # of labels that no person gave

    def summary(self) -> dict[str, Any]:
        """Counts for a reader: hours, speakers, splits and classes."""
        counted: dict[str, Any] = {
            "name": self.name,
            "utterances": len(self.utterances),
            "hours": round(sum(u.duration or 0 for u in self.utterances) / 3600, 4),
            "speakers": len({u.speaker for u in self.utterances if u.speaker}),
            "trials": len(self.trials),
        }
        for label in ("split", "emotion", "language"):
            found = Counter(getattr(u, label) for u in self.utterances)
            found.pop(None, None)
            if found:
                counted[label] = dict(sorted(found.items()))
        return counted


def check_replaceable(folder: Path, mark: str = "corpus.json") -> None:
    """Refuse a folder that a new corpus must not replace.

    mark: the file that tells a corpus of ours.

    Raises:
        DataError: neither missing, nor empty, nor a corpus of ours with nothing else in it.
    """
    remedy = "choose another folder with --out, or move what is there"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, expected a folder to write; {remedy}")
    if Path.cwd().is_relative_to(folder.resolve()):  # whoever stands in it would be left in a void
        raise DataError(f"{folder} is the current folder or above it, so not replaced; {remedy}")
    found = {path.name for path in folder.iterdir()}
    if found and mark not in found:
        raise DataError(f"{folder} is not empty and no corpus of ours (no {mark}); {remedy}")
    if others := sorted(found - _OURS):
        raise DataError(f"{folder} holds more than a corpus: {', '.join(others[:5])}; {remedy}")


@contextmanager
def replacing(folder: Path, mark: str = "corpus.json") -> Iterator[Path]:
    """An empty folder beside `folder`; it takes the place of `folder` once the block is through.

    An error in the block leaves everything as it was. `mark` is that of `check_replaceable`.
    """
    check_replaceable(folder, mark)
    folder = folder.resolve()  # through a link, to rename on the disk where the corpus lies
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".prepare-") as temporary:
        new, old = Path(temporary, "new", folder.name), Path(temporary, "old")
        new.mkdir(parents=True)
        yield new
        check_replaceable(folder, mark)  # again: the block may have taken an hour
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


def write_corpus(corpus: Corpus, rates: dict[Path, tuple[int, int, int]]) -> None:
    """Write into the corpus's folder, which is there; use `replacing` to have it whole or not.

    Audio inside the folder is named relative to it, so that the folder may move.

    rates: sample rate, samples and channels of each audio file.
    """
    from lhotse import CutSet, RecordingSet, SupervisionSet

    out = corpus.folder
    cuts = [_cut(u, out, rates[u.audio]) for u in corpus.utterances]
    recordings = {cut.recording.id: cut.recording for cut in cuts}
    RecordingSet.from_recordings(recordings.values()).to_jsonl(out / "recordings.jsonl")
    SupervisionSet.from_segments(s for c in cuts for s in c.supervisions).to_jsonl(
        out / "supervisions.jsonl"
    )
    CutSet.from_cuts(cuts).to_jsonl(out / "cuts.jsonl")
    if corpus.trials:
        write_trials(out / "trials.tsv", corpus.trials)
    if corpus.teachers:
        write_cards(out, corpus.teachers)
    summary = {"format": _FORMAT, **corpus.summary()}
    if corpus.source:
        summary["source"] = corpus.source
    (out / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")


def read_corpus(folder: Path) -> Corpus:
    """A folder that `write_corpus` wrote.

    Raises:
        DataError: it is no prepared corpus, or it is damaged.
    """
    from lhotse import CutSet

    card = folder / "corpus.json"
    if not card.is_file():
        raise DataError(
            f"{folder} is no prepared corpus (no corpus.json); "
            "make one with: speechfuse prepare MANIFEST --out FOLDER"
        )
    remedy = "prepare the corpus again"
    with damage(card, DataError, remedy):
        about = json.loads(card.read_text())
        name, source = _text(about["name"]), about.get("source")
    with damage(folder / "cuts.jsonl", DataError, remedy):
        cuts = CutSet.from_jsonl(folder / "cuts.jsonl")
        utterances = tuple(_utterance(cut, folder) for cut in cuts)
    trials = folder / "trials.tsv"
    found = read_trials(trials, utterances) if trials.is_file() else ()
    return Corpus(name, folder, utterances, found, source, read_cards(folder))


def _text(value: object) -> str:
    """Of what must be one."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise DataError(f"found {value!r} where a text must stand; prepare the corpus again")
    return value


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Pairs as `label enrol test`, with a header."""
    lines = [f"{int(t.same)}\t{t.enrolment}\t{t.test}" for t in trials]
    path.write_text("\n".join(["label\tenrol\ttest", *lines]) + "\n")


def read_trials(path: Path, utterances: Sequence[Utterance]) -> tuple[Trial, ...]:
    """Pairs as `label enrol test`, with or without a header; names are ids or audio paths.

    Raises:
        DataError: no such file, a row that is not three fields, a label that is not 0 or 1, a
            name unknown or ambiguous.
    """
    names = _names(utterances)
    rows = [line.replace(",", " ").split() for line in read_lines(path) if line]
    order, first = (0, 1, 2), 1
    if rows and "label" in rows[0]:
        head = ["enrol" if name in ("enroll", "enrolment") else name for name in rows[0]]
        if set(head) != {"label", "enrol", "test"}:
            raise DataError(f"{path}: columns are {head}, expected label, enrol, test")
        order = (head.index("label"), head.index("enrol"), head.index("test"))
        rows, first = rows[1:], 2
    trials = []
    for number, row in enumerate(rows, start=first):
        if len(row) != 3 or row[order[0]] not in ("0", "1"):
            raise DataError(f"{path}, line {number}: expected a label 0 or 1 and two utterances")
        label, one, other = (row[i] for i in order)
        for name in (one, other):
            if name not in names:
                raise DataError(f"{path}, line {number}: no utterance '{name}' in the manifest")
            if len(names[name]) > 1:
                raise DataError(
                    f"{path}, line {number}: '{name}' stands for {len(names[name])} utterances "
                    f"such as {' and '.join(names[name][:2])}; use an id"
                )
        trials.append(Trial(names[one][0], names[other][0], label == "1"))
    return tuple(trials)


def read_lines(path: Path) -> list[str]:
    """Lines of a text that people bring.

    Raises:
        DataError: no such file, or not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"no file at {path}; check the path")
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error


def _names(utterances: Sequence[Utterance]) -> dict[str, list[str]]:
    """Every name a trial may use, and the ids it stands for; an id is always itself."""
    names: dict[str, list[str]] = defaultdict(list)
    for u in utterances:
        ends = ("/".join(u.audio.parts[-n:]) for n in (3, 2, 1))
        for name in {str(u.audio), *ends, u.audio.stem}:
            names[name].append(u.id)
    return {**names, **{u.id: [u.id] for u in utterances}}


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Rows of text as a TSV file with a header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """A TSV file that `write_table` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _cut(utterance: Utterance, folder: Path, about: tuple[int, int, int]) -> Cut:
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    rate, samples, channels = about
    inside = utterance.audio.is_relative_to(folder)
    path = utterance.audio.relative_to(folder) if inside else utterance.audio.resolve()
    name = str(path.with_suffix("")) if inside else str(path)
    recording = Recording(
        id=name,
        sources=[AudioSource(type="file", channels=list(range(channels)), source=str(path))],
        sampling_rate=rate,
        num_samples=samples,
        duration=samples / rate,
        channel_ids=list(range(channels)),
    )
    duration = utterance.duration or samples / rate - utterance.start
    custom = {name: value for name in _LABELS if (value := getattr(utterance, name)) is not None}
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        custom={**utterance.extra, **custom} or None,
    )
    return MonoCut(
        id=utterance.id,
        start=utterance.start,
        duration=duration,
        channel=0,
        supervisions=[supervision],
        recording=recording,
    )


def _utterance(cut: Cut, folder: Path) -> Utterance:
    supervision = cut.supervisions[0]
    custom = dict(supervision.custom or {})
    return Utterance(
        id=_text(cut.id),
        audio=folder / _text(cut.recording.sources[0].source),
        start=cut.start,
        duration=cut.duration,
        text=supervision.text,
        speaker=supervision.speaker,
        language=supervision.language,
        emotion=custom.pop("emotion", None),
        split=custom.pop("split", None),
        extra=custom,
    )
