"""Audit a corpus: listen to every utterance once, in several processes, and compare the splits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from speechfuse import catalog
from speechfuse.audit.duplicates import Group, conflicts, groups_of, nearly_the_same, overlapping
from speechfuse.audit.findings import (
    SHOWN,
    Finding,
    Members,
    audio_findings,
    balance_findings,
    label_counts,
    same_audio,
    split_findings,
)
from speechfuse.audit.listening import Heard, Place, listen
from speechfuse.cache.memo import absolute, audio_hashes, file_sha256
from speechfuse.data.corpus import Corpus
from speechfuse.data.splits import split_utterances
from speechfuse.errors import DataError, did_you_mean
from speechfuse.recipe import SplitRecipe, StoreRecipe
from speechfuse.types import Progress, Table, Utterance

CHUNK = 32  # utterances that a process is given at a time
CLASSES = 30  # a column with more values is no label, unless a task asks for it
LEVELS = ("serious", "warning", "note")


@dataclass(frozen=True)
class Audit:
    """All that was found."""

    corpus: str
    members: Members
    findings: Sequence[Finding]
    own_split: bool  # the corpus's; else the one that a recipe without a split draws

    @property
    def serious(self) -> bool:
        return any(one.level == "serious" for one in self.findings)


def audit_corpus(
    corpus: Corpus,
    tasks: Sequence[str] = (),
    *,
    jobs: int = 1,
    allow: Sequence[str] = (),
    progress: Progress | None = None,
) -> Audit:
    """Listen to every utterance that a task can use, and look for what is wrong.

    Audio passes through in pieces; what stays is about a kilobyte for each utterance.

    tasks: kinds of tasks, or columns of classes; without any, every column with few values and
    the texts. jobs: processes. allow: checks of which nothing is serious, by their first word.

    Raises:
        DataError: no utterance has what the tasks need.
    """
    labels, texts, needs = _asked(corpus, tasks)
    usable = [u for u in corpus.utterances if not needs or any(all(map(u.label, n)) for n in needs)]
    if not usable:
        raise DataError(
            f"none of the {len(corpus.utterances)} utterances of {corpus.name} has what "
            f"{', '.join(tasks)} needs; look at its columns"
        )
    utterances, splits = _split(usable, corpus.name)
    places: list[Place] = [(u.audio, u.start, u.duration) for u in utterances]
    heard = list(_heard(places, jobs, progress))
    own = any(u.split for u in usable)
    drawn = own and "dev" in splits and not any(u.split == "dev" for u in usable)
    members = Members(utterances, splits, heard, labels, texts, drawn)
    found = [
        *split_findings(members),
        *_same(members, places, progress),
        *balance_findings(members),
        *audio_findings(members),
    ]
    if left := len(corpus.utterances) - len(utterances):
        text = "are in no split, or have no label that is asked for"
        found.append(Finding("unused", "note", left, len(corpus.utterances), text))
    found = [_allowed(one, allow) for one in found]
    found.sort(key=lambda one: LEVELS.index(one.level))
    return Audit(corpus.name, members, found, own)


def _asked(corpus: Corpus, tasks: Sequence[str]) -> tuple[list[str], bool, list[tuple[str, ...]]]:
    """Columns of classes, whether texts count, and the columns that each task needs."""
    columns = {name for u in corpus.utterances for name in u.extra} | {"emotion", "language"}
    if not tasks:
        known = {
            name: {value for u in corpus.utterances if (value := u.label(name))}
            for name in sorted(columns)
        }
        labels = [name for name, values in known.items() if 1 < len(values) <= CLASSES]
        return labels, any(u.text for u in corpus.utterances), []
    needs, labels = [], []
    for name in tasks:
        if name in catalog.TASKS:
            task = catalog.TASKS[name]()
            needs.append(tuple(task.needs))
            labels += [n for n in task.needs if task.reads in ("class", "classes")]
        elif name in columns | {"text", "speaker"}:
            needs.append((name,))
            labels.append(name)
        else:
            raise DataError(
                f"--task {name}: no task and no column of {corpus.name}; "
                f"{did_you_mean(name, columns | set(catalog.TASKS))}"
            )
    texts = any("text" in need for need in needs) and "text" not in labels
    return list(dict.fromkeys(labels)), texts, needs


def _split(usable: Sequence[Utterance], name: str) -> tuple[list[Utterance], list[str]]:
    """Utterances with their splits; all in one where the corpus cannot be split."""
    try:
        found = split_utterances(usable, SplitRecipe(), name)
    except DataError:
        return list(usable), ["all"] * len(usable)
    pairs = [(u, split) for split, several in found.items() for u in several]
    return [u for u, _ in pairs], [split for _, split in pairs]


def _heard(places: Sequence[Place], jobs: int, progress: Progress | None) -> Iterator[Heard]:
    """In order; only a few pieces are under way at a time."""
    done = 0

    def told(several: Sequence[Heard]) -> Iterator[Heard]:
        nonlocal done
        for one in several:
            done += 1
            if progress:
                progress("utterances heard", done, len(places))
            yield one

    chunks = (places[start : start + CHUNK] for start in range(0, len(places), CHUNK))
    if jobs == 1:
        for place in places:
            yield from told([listen(place)])
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting: deque[Future[list[Heard]]] = deque()
        try:
            for chunk in islice(chunks, 3 * jobs):
                waiting.append(pool.submit(_listen_to, chunk))
            while waiting:
                yield from told(waiting.popleft().result())
                for chunk in islice(chunks, 1):
                    waiting.append(pool.submit(_listen_to, chunk))
        finally:
            pool.shutdown(cancel_futures=True)


def _listen_to(places: Sequence[Place]) -> list[Heard]:
    return [listen(place) for place in places]


def _same(m: Members, places: Sequence[Place], progress: Progress | None) -> Iterator[Finding]:
    """Copies, from the exact to the near; what is found by one check is left out by the next."""
    digests = audio_hashes(Path(StoreRecipe().folder))  # those of the stores of layers
    files: dict[Path, str] = {}
    for u, h in zip(m.utterances, m.heard, strict=True):
        if not h.error and u.audio not in files:
            files[u.audio] = digests.ask(absolute(u.audio), file_sha256)
    if Path(StoreRecipe().folder).is_dir():  # an audit leaves nothing behind where none is
        digests.save()
    bytes_ = groups_of(
        (files[u.audio], f"{u.start:.6f}", f"{u.duration or 0:.6f}") if not h.error else None
        for u, h in zip(m.utterances, m.heard, strict=True)
    )
    yield from same_audio(m, "same file", "are one recording, byte for byte", bytes_, {})
    known = {frozenset(group) for group in bytes_}
    samples = [
        group for group in groups_of(h.samples for h in m.heard) if frozenset(group) not in known
    ]
    rates = {
        group: f", {' and '.join(map(str, sorted(found)))} Hz"
        for group in samples
        if len(found := {m.heard[p].rate for p in group}) > 1
    }
    text = "have the same samples in other files"
    yield from same_audio(m, "same samples", text, samples, rates)
    if rates:
        text = "have the same samples at another sample rate: one header is wrong"
        shown = [" = ".join(m.named(p) for p in g[:3]) + rates[g] for g in rates]
        yield Finding("sample rate", "serious", len(rates), len(samples), text, shown[:SHOWN])
    spans = [pair for pair in overlapping(m.utterances) if frozenset(pair) not in known]
    text = "overlap with another span of their recording"
    yield from same_audio(m, "overlap", text, spans, {})
    near, left_out = nearly_the_same(places, m.heard, progress)
    files_of = [str(u.audio) for u in m.utterances]
    near = [one for one in near if files_of[one[0]] != files_of[one[1]]]
    detail: dict[Group, str] = {
        (a, b): f", {100 * wrong:.0f} % of bits differ" for a, b, wrong in near
    }
    text = "sound alike frame by frame: other format, level, cut or noise"
    yield from same_audio(m, "near copy", text, [(a, b) for a, b, _ in near], detail)
    if left_out:
        text = "pairs that may be near copies were not compared, there are too many"
        yield Finding("near copy", "note", left_out, left_out, text)
    yield from _conflicting(m, [*bytes_, *samples, *((a, b) for a, b, _ in near)])
    yield from _recordings(m)


def _conflicting(m: Members, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    labels = {n: [u.label(n) for u in m.utterances] for n in ("speaker", *m.labels)}
    if m.texts:
        labels["text"] = [u.text for u in m.utterances]
    found = conflicts(groups, labels)
    if found:
        shown = [
            " = ".join(m.named(p) for p in group[:3])
            + f": {name} {' and '.join(sorted({str(labels[name][p]) for p in group}))}"
            for group, name in found[:SHOWN]
        ]
        text = "copies have several values of a label"
        yield Finding("labels of copies", "warning", len(found), len(groups), text, shown)


def _recordings(m: Members) -> Iterator[Finding]:
    """Spans of one file in several splits: room, channel and topic are the same."""
    where: dict[str, set[str]] = {}
    for u, split in zip(m.utterances, m.splits, strict=True):
        where.setdefault(str(u.audio), set()).add(split)
    shared = [name for name, splits in where.items() if "test" in splits and len(splits) > 1]
    if shared:
        text = "recordings have spans in test and in another split"
        names = [Path(name).name for name in shared[:SHOWN]]
        yield Finding("recordings", "warning", len(shared), len(where), text, names)


def _allowed(one: Finding, allow: Sequence[str]) -> Finding:
    if one.level == "serious" and any(one.check.startswith(name) for name in allow):
        return Finding(
            one.check, "warning", one.count, one.of, one.text + " (allowed)", one.examples
        )
    return one


def audit_tables(audit: Audit) -> list[Table]:
    """What was found, then the labels of each split."""
    m = audit.members
    splits = {split: m.splits.count(split) for split in dict.fromkeys(m.splits)}
    hours = sum(h.seconds for h in m.heard) / 3600
    title = f"{audit.corpus}: {len(m.utterances):,} utterances, {hours:.2f} h; "
    title += ", ".join(f"{count:,} {split}" for split, count in splits.items())
    if not audit.own_split:
        title += "\nthe corpus has no split; this one a recipe without a split would draw"
    elif m.dev_drawn:
        title += "\nno dev: drawn from train, as training does"
    rows = [
        [f"{one.level}\n{one.check}", f"{one.count:,} of {one.of:,}", _words(one)]
        for one in audit.findings
    ]
    tables: list[Table] = [(title, ["level and check", "how many", "what, and worst"], rows)]
    for label in m.labels:
        counts = label_counts(m, label)
        names = sorted({name for of_split in counts.values() for name in of_split})
        body = [
            [name, *(f"{c[name]:,} ({100 * c[name] / c.total():.0f} %)" for c in counts.values())]
            for name in names[:CLASSES]
        ]
        tables.append((f"{label} by split", [label, *counts], body))
    return tables


def _words(one: Finding) -> str:
    return "\n".join([one.text, *one.examples])


def audit_json(audit: Audit) -> dict[str, Any]:
    """The same as data."""
    m = audit.members
    return {
        "corpus": audit.corpus,
        "utterances": len(m.utterances),
        "hours": round(sum(h.seconds for h in m.heard) / 3600, 4),
        "own_split": audit.own_split,
        "dev_drawn": m.dev_drawn,
        "serious": audit.serious,
        "findings": [asdict(one) for one in audit.findings],
        "labels": {
            label: {s: dict(c) for s, c in label_counts(m, label).items()} for label in m.labels
        },
    }
