"""What is found: one line for each kind of fault, with its worst examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from speechfuse.audit.duplicates import Group
from speechfuse.audit.listening import Heard
from speechfuse.text import normalise_text
from speechfuse.types import Utterance

Level = Literal["serious", "warning", "note"]
SHOWN = 3  # examples
WHERE = {"serious": "in test and elsewhere", "warning": "in train and dev", "note": "in one split"}
CLIPPED = 1e-3  # share of samples
SILENT = 3e-3  # rms of the loudest frame, -50 dB
MOSTLY_SILENT = 0.8  # share of frames
OFFSET = 0.01  # of full scale
DROP = 40.0  # dB, from 3.0-3.6 kHz to what is above 4.4
SHORT, LONG = 0.2, 30.0  # seconds; Whisper reads 30 at most
MISSING = 0.05  # seconds
SLOWEST, FASTEST = 1.0, 30.0  # characters in a second


@dataclass(frozen=True)
class Finding:
    """One kind of fault."""

    check: str
    level: Level
    count: int
    of: int
    text: str
    examples: Sequence[str] = ()


@dataclass(frozen=True)
class Members:
    """The utterances of a corpus, in which split each is, and what was heard of each."""

    utterances: Sequence[Utterance]
    splits: Sequence[str]
    heard: Sequence[Heard]
    labels: Sequence[str]  # columns that are classes
    texts: bool  # whether what is said is asked for
    dev_drawn: bool = False  # from train, as the corpus has a split without it

    def named(self, place: int) -> str:
        return f"{self.utterances[place].id} ({self.told(self.splits[place])})"

    def told(self, split: str) -> str:
        """A split, and where it is from if the corpus does not have it."""
        return f"{split} drawn from train" if self.dev_drawn and split == "dev" else split


def across(splits: set[str]) -> Level | None:
    """How bad it is that the same thing is in these splits; a test set must not be learned from."""
    if "test" in splits and splits & {"train", "dev"}:
        return "serious"
    return "warning" if {"train", "dev"} <= splits else None


def split_findings(m: Members) -> Iterator[Finding]:
    """Ids, speakers and texts."""
    ids = Counter(u.id for u in m.utterances)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        text = "ids stand for several utterances"
        yield Finding("ids", "serious", len(twice), len(ids), text, twice[:SHOWN])
    unknown = [p for p, u in enumerate(m.utterances) if not u.speaker]
    if unknown:
        text = "without a speaker: nobody can tell whether speakers are in two splits"
        yield _of_places("speaker", "warning", m, unknown, text)
    yield from _shared(m, "speakers", "speakers", [u.speaker for u in m.utterances])
    if m.texts:
        texts = [normalise_text(u.text) if u.text else None for u in m.utterances]
        for one in _shared(m, "transcripts", "texts", texts):
            level: Level = "warning" if one.level == "serious" else "note"  # all may say the same
            yield Finding(one.check, level, one.count, one.of, one.text, one.examples)


def _shared(m: Members, check: str, noun: str, values: Sequence[str | None]) -> Iterator[Finding]:
    """Values that are in two splits, for each pair of splits."""
    where: dict[str, Counter[str]] = {}
    for value, split in zip(values, m.splits, strict=True):
        if value:
            where.setdefault(value, Counter())[split] += 1
    for one, other in combinations(("test", "dev", "train"), 2):
        both = {v: c for v, c in where.items() if c[one] and c[other]}
        of = sum(c[one] > 0 for c in where.values())
        level = across({one, other})
        if both and level:
            share = sum(c[one] for c in both.values()) / max(1, m.splits.count(one))
            told = f"{m.told(one)} are in {m.told(other)}"
            text = f"{noun} of {told}, too: {100 * share:.0f} % of its utterances"
            worst = sorted(both, key=lambda v: -min(both[v][one], both[v][other]))
            yield Finding(f"{check}, {one} in {other}", level, len(both), of, text, worst[:SHOWN])


def balance_findings(m: Members) -> Iterator[Finding]:
    """Classes that a split lacks, or has in another share, or that are written in two ways."""
    for label in m.labels:
        counts = label_counts(m, label)
        for split in ("dev", "test"):
            if "train" not in counts or split not in counts:
                continue
            mine, train = counts[split], counts["train"]
            if lost := sorted(set(mine) - set(train)):
                number = sum(mine[name] for name in lost)
                text = f"of {split} have another {label} than any training utterance"
                yield Finding(
                    f"{label} balance", "serious", number, mine.total(), text, lost[:SHOWN]
                )
            if few := sorted(n for n in train if mine[n] < 5):
                text = f"values of {label} have fewer than 5 utterances in {split}"
                yield Finding(
                    f"{label} balance", "warning", len(few), len(train), text, few[:SHOWN]
                )
            apart = sum(
                abs(mine[n] / mine.total() - train[n] / train.total()) for n in mine | train
            )
            if apart / 2 > 0.2:
                text = f"% of {split} would need another {label} to be shared out as in train"
                yield Finding(f"{label} balance", "warning", round(50 * apart), 100, text)
        every = sum(counts.values(), Counter())
        alike: dict[str, list[str]] = {}
        for name in sorted(every):
            alike.setdefault(" ".join(name.casefold().split()), []).append(name)
        if several := [names for names in alike.values() if len(names) > 1]:
            number = sum(every[name] for names in several for name in names)
            text = f"have a value of {label} that differs from another in case or spaces alone"
            shown = [" = ".join(map(repr, names)) for names in several[:SHOWN]]
            yield Finding(f"{label} spelling", "warning", number, every.total(), text, shown)
        top, count = every.most_common(1)[0]
        if len(every) > 1 and count > 0.8 * every.total():
            text = f"have the {label} '{top}': who always says so seems right"
            yield Finding(f"{label} balance", "warning", count, every.total(), text)


def label_counts(m: Members, label: str) -> dict[str, Counter[str]]:
    """By split, how many utterances each value has."""
    counts: dict[str, Counter[str]] = {}
    for u, split in zip(m.utterances, m.splits, strict=True):
        if value := u.label(label):
            counts.setdefault(split, Counter())[value] += 1
    return counts


def same_audio(
    m: Members, check: str, text: str, groups: Sequence[Group], detail: Mapping[Group, str]
) -> Iterator[Finding]:
    """Groups of utterances with the same audio: between splits a leak, within one a nuisance."""
    by_level: dict[Level, list[Group]] = {}
    for group in groups:
        level = across({m.splits[p] for p in group}) or "note"
        by_level.setdefault(level, []).append(group)
    for level, found in by_level.items():
        shown = [
            " = ".join(m.named(p) for p in group[:3]) + detail.get(group, "")
            for group in found[:SHOWN]
        ]
        number = sum(len(group) for group in found)
        name = f"{check}, {WHERE[level]}"
        yield Finding(name, level, number, len(m.utterances), text, shown)


def audio_findings(m: Members) -> Iterator[Finding]:
    """What is wrong with the sound of single utterances."""
    broken = [p for p, h in enumerate(m.heard) if h.error]
    if broken:
        shown = [f"{m.named(p)}: {m.heard[p].error}" for p in broken[:SHOWN]]
        text = "cannot be read"
        yield Finding("audio", "serious", len(broken), len(m.heard), text, shown)
    for check, level, text, value, limit, unit in _MEASURES:
        found = [(v, p) for p, h in enumerate(m.heard) if not h.error and (v := value(h)) > limit]
        if found:
            found.sort(reverse=True)
            shown = [f"{m.named(p)}: {unit(m.heard[p])}" for _, p in found[:SHOWN]]
            yield Finding(check, level, len(found), len(m.heard), text, shown)
    yield from _limited(m)
    rates = Counter(h.rate for h in m.heard if not h.error)
    if len(rates) > 1:
        most, _ = rates.most_common(1)[0]
        shown = [f"{n:,} at {rate} Hz" for rate, n in rates.most_common(SHOWN)]
        number = sum(rates.values()) - rates[most]
        text = f"have another sample rate than {most} Hz"
        yield Finding("sample rates", "note", number, len(m.heard), text, shown)
    yield from _spoken(m)


Measure = tuple[str, Level, str, Callable[[Heard], float], float, Callable[[Heard], str]]
_MEASURES: Sequence[Measure] = (
    ("missing audio", "serious", "end before the corpus says so: cut, or another sample rate in "
     "the header than when it was prepared", lambda h: h.missing, MISSING,
     lambda h: f"{h.missing:.2f} s short"),
    ("clipped", "warning", f"have more than {100 * CLIPPED:g} % of their samples on a flat top or "
     "at full scale", lambda h: h.clipped, CLIPPED, lambda h: f"{100 * h.clipped:.1f} %"),
    ("silent", "warning", "have no frame above -50 dB of full scale", lambda h: SILENT - h.loudest,
     0.0, lambda h: f"{_db(h.loudest)} dB"),
    ("mostly silence", "note", f"are silent (35 dB below their loudest frame) in more than "
     f"{100 * MOSTLY_SILENT:g} % of their frames", lambda h: h.silence * (h.loudest >= SILENT),
     MOSTLY_SILENT, lambda h: f"{100 * h.silence:.0f} %"),
    ("DC offset", "note", f"have a mean of more than {100 * OFFSET:g} % of full scale",
     lambda h: abs(h.offset), OFFSET, lambda h: f"{100 * h.offset:+.1f} %"),
    ("very short", "warning", f"have less than {SHORT:g} s", lambda h: SHORT - h.seconds, 0.0,
     lambda h: f"{h.seconds:.2f} s"),
    ("very long", "note", f"have more than {LONG:g} s, which is all that Whisper reads",
     lambda h: h.seconds, LONG, lambda h: f"{h.seconds:.0f} s"),
)  # fmt: skip


def _db(level: float) -> str:
    import math

    return f"{20 * math.log10(max(level, 1e-6)):.0f}"


def _limited(m: Members) -> Iterator[Finding]:
    """Nothing above 4 kHz: 8 kHz files, or such files upsampled; worse if only some are."""

    def is_limited(h: Heard) -> bool:
        return h.rate < 12000 or (h.drop is not None and h.drop > DROP)

    told = [
        p for p, h in enumerate(m.heard) if not h.error and (h.drop is not None or h.rate < 12000)
    ]
    found = [p for p in told if is_limited(m.heard[p])]
    if not found:
        return
    shares = {
        split: sum(m.splits[p] == split for p in found) / total
        for split in dict.fromkeys(m.splits)
        if (total := sum(m.splits[p] == split for p in told))
    }
    uneven = max(shares.values()) - min(shares.values()) > 0.2
    text = "have nothing above 4 kHz: telephone speech, or 8 kHz files upsampled"
    if uneven:
        each = ", ".join(f"{100 * v:.0f} % of {k}" for k, v in shares.items())
        text += f"; unevenly, {each}"
    found.sort(key=lambda p: -(m.heard[p].drop or 0))
    shown = [
        f"{m.named(p)}: "
        + (f"{m.heard[p].drop:.0f} dB less" if m.heard[p].drop else f"{m.heard[p].rate} Hz")
        for p in found[:SHOWN]
    ]
    yield Finding(
        "band-limited", "warning" if uneven else "note", len(found), len(told), text, shown
    )


def _spoken(m: Members) -> Iterator[Finding]:
    """Texts that cannot be of their audio: characters in a second."""
    if not m.texts:
        return
    odd = []
    for place, (u, h) in enumerate(zip(m.utterances, m.heard, strict=True)):
        length = len(normalise_text(u.text)) if u.text and not h.error else 0
        if length >= 10 and not SLOWEST <= (pace := length / max(h.seconds, 0.01)) <= FASTEST:
            odd.append((pace, place))
    if odd:
        odd.sort(reverse=True)
        shown = [f"{m.named(p)}: {pace:.1f} characters/s" for pace, p in odd[:SHOWN]]
        text = f"do not fit their text: not {SLOWEST:g} to {FASTEST:g} characters in a second"
        yield Finding("text and audio", "warning", len(odd), len(m.utterances), text, shown)


def _of_places(check: str, level: Level, m: Members, places: Sequence[int], text: str) -> Finding:
    shown = [m.named(p) for p in places[:SHOWN]]
    return Finding(check, level, len(places), len(m.utterances), text, shown)
