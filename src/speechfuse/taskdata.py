"""From a recipe's tasks to utterances: find the corpora, split them, fit the tasks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speechfuse import build
from speechfuse.contracts import Task
from speechfuse.data.copies import with_copies
from speechfuse.data.corpus import Corpus, read_corpus
from speechfuse.data.flips import flip_labels
from speechfuse.data.manifests import manifest_name, prepare, rearranged, trials_beside
from speechfuse.data.origins import (
    Origin,
    extra_utterances,
    find_origins,
    refuse_seen,
    seen_in,
)
from speechfuse.data.splits import Splits, make_trials, split_utterances
from speechfuse.data.summary import NOTHING, DataSummary, summarise
from speechfuse.data.synthetic.corpus import prepare_synthetic
from speechfuse.data.synthetic.languages import prepare_languages
from speechfuse.data.teachers import FILE as TEACHERS
from speechfuse.data.teachers import Seen
from speechfuse.errors import DataError
from speechfuse.recipe import AugmentRecipe, Recipe, TaskRecipe
from speechfuse.types import Progress, Trial, Utterance


@dataclass(frozen=True)
class TaskData:
    """One task with its utterances by split, and the trials of each split if it needs any."""

    name: str
    task: Task
    splits: Splits
    trials: Mapping[str, Sequence[Trial]]
    noise_snr: float | None
    about: DataSummary = NOTHING
    origins: Sequence[Origin] = ()  # teachers of labels that no person gave
    seen: Sequence[Seen] = ()  # whom the task is trained and developed on, and its teachers were

    def marks(self) -> dict[str, str]:
        """One line for each split, another one when its utterances, labels or trials change."""
        return {split: self._mark(split) for split in self.splits}

    def _mark(self, split: str) -> str:
        members = self.splits[split]
        labels = [[u.label(need) for need in self.task.needs] for u in members]
        rows = [[u.id, u.start, u.duration, *row] for u, row in zip(members, labels, strict=True)]
        pairs = [[t.enrolment, t.test, t.same] for t in self.trials.get(split, ())]
        digest = hashlib.sha256(json.dumps([rows, pairs]).encode()).hexdigest()
        return f"{len(members)} utterances, {digest[:16]}"


def corpora_folder() -> Path:
    """Where prepared corpora lie: $SPEECHFUSE_CORPORA, or `corpora` in the current folder."""
    return Path(os.environ.get("SPEECHFUSE_CORPORA", "corpora"))


def prepared_folder(name: str) -> Path:
    """Where the corpus that a recipe names lies, or will lie once it is prepared."""
    path = Path(name)
    if path.is_file():  # a manifest: another folder when it or its trials change
        parts = [str(path.resolve()), str(path.stat().st_mtime_ns)]
        beside = (trials_beside(path), path.parent / TEACHERS)
        parts += [str(one.stat().st_mtime_ns) for one in beside if one and one.is_file()]
        mark = hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]
        return corpora_folder() / f"{manifest_name(path)}-{mark}"
    return path if is_prepared(path) else corpora_folder() / name


def is_prepared(folder: Path) -> bool:
    """Whether a whole corpus lies there."""
    return (folder / "corpus.json").is_file()


def find_corpus(name: str, progress: Progress | None = None) -> Corpus:
    """A prepared corpus by name or folder; synthetic ones and manifests are prepared on first use.

    Raises:
        DataError: there is none.
    """
    folder, path = prepared_folder(name), Path(name)
    if name in MADE:
        return MADE[name](corpora_folder() / name, progress=progress)
    if is_prepared(folder):
        return read_corpus(folder)
    if path.is_file():
        return prepare(path, folder, name=manifest_name(path), progress=progress)
    raise DataError(
        f"no corpus '{name}': neither a prepared folder, nor in {corpora_folder()}, nor a "
        "manifest; make it with: speechfuse prepare MANIFEST --out FOLDER"
    )


def remade(
    name: str, folder: Path, *, join: int = 1, mix: int = 1, progress: Progress | None = None
) -> Corpus:
    """A corpus of the clips of another one, by name or folder: joined, or speakers mixed.

    Raises:
        DataError: there is no such corpus, it lies in that folder itself, or has too few clips.
    """
    source = find_corpus(name, progress)
    if source.folder.resolve() == folder.resolve():
        raise DataError(f"{folder} holds the clips that are wanted; choose another one with --out")
    corpus = replace(source, name=folder.resolve().name, folder=folder)
    return rearranged(corpus, join=join, mix=mix, progress=progress)


def _conversations(folder: Path, progress: Progress | None = None) -> Corpus:
    """Two speakers of the synthetic corpus in each utterance."""
    if is_prepared(folder):
        return read_corpus(folder)
    return remade("synthetic", folder, mix=2, progress=progress)


# Corpora that are made when they are first asked for.
MADE: Mapping[str, Callable[..., Corpus]] = {
    "synthetic": prepare_synthetic,
    "synthetic-languages": prepare_languages,
    "synthetic-mix": _conversations,
}


def load_task(
    name: str,
    entry: TaskRecipe,
    corpus: Corpus,
    state: Mapping[str, object] | None = None,
    extra: Sequence[Corpus] = (),
) -> TaskData:
    """Split one task's utterances and fit the task to the training ones, or restore `state`.

    extra: corpora that are only learned from.

    Raises:
        DataError: no utterance has the task's labels, an unknown speaker, an empty split, or test
            speakers whom a teacher of the labels has seen.
    """
    task = build.build_task(name, entry)
    usable = [u for u in corpus.utterances if all(u.label(need) for need in task.needs)]
    if not usable:
        raise DataError(
            f"task '{name}': none of the {len(corpus.utterances)} utterances of {corpus.name} "
            f"has {' and '.join(task.needs)}; add the column or leave the task out"
        )
    where = f"task '{name}' on {corpus.name}"
    splits = split_utterances(usable, entry.split, where, task.min_speakers)
    if extra and entry.split.all_test:
        raise DataError(f"{where}: split.all_test trains nothing; leave extra_training out")
    more = extra_utterances(extra, task.needs, splits, where)
    own, more = (
        [u for u in members if (u.duration or 0) >= entry.min_seconds]
        for members in (splits["train"], more)
    )
    if not own:
        raise DataError(
            f"{where}: no training utterance has {entry.min_seconds:g} s; lower min_seconds"
        )
    splits["train"] = own + more
    about = summarise(
        [one.name for one in (corpus, *extra)],
        splits,
        task.needs if task.reads in ("class", "classes") else (),
        all_test=entry.split.all_test,
        drawn_within_speakers=bool(entry.split.dev_share),
    )
    origins = find_origins(splits, task.needs, [corpus, *extra], where)
    if not entry.allow_seen_by_teacher:
        refuse_seen(origins, corpus, splits["test"], where)
    if entry.augment:
        _check_copies(task, entry.augment, where)
    if state is not None:
        task.load_state(state)
    else:  # a class that only extra utterances have could never be tested
        new = entry.augment and entry.augment.speed_speakers == "new"
        spoken = with_copies(splits["train"], entry.augment, where) if new else splits["train"]
        task.fit(own if task.reads in ("class", "classes") else spoken)
    if entry.flip_labels:
        if task.reads != "class" or len(task.needs) != 1:
            raise DataError(
                f"task '{name}': flip_labels is for tasks with one class for each utterance, this "
                f"one needs {' and '.join(task.needs)}; leave it out"
            )
        own = flip_labels(own, task.needs[0], entry.flip_labels, where)
        splits["train"] = own + more
    splits["train"] = with_copies(splits["train"], entry.augment, where)
    for members in splits.values():
        task.check(members)
    if state is None:
        task.weigh(splits["train"])
    trials = {split: _trials(corpus, splits[split]) for split in ("dev", "test")}
    for split, pairs in trials.items():
        try:
            task.check_trials(pairs)
        except DataError as error:
            raise DataError(f"{where}: the {split} split has {error}") from error
    learned = [u for split in ("train", "dev") for u in splits[split]]
    seen = [seen_in(one, _of(one, learned)) for one in (corpus, *extra)]
    seen += [one for origin in origins for one in origin.card.seen]
    return TaskData(name, task, splits, trials, entry.noise_snr, about, origins, seen)


def _check_copies(task: Task, augment: AugmentRecipe, where: str) -> None:
    """Refuse copies that the task's labels do not fit."""
    if augment.speeds and task.reads == "turns":
        raise DataError(
            f"{where}: at another speed the turns would be at other times; leave augment.speed out"
        )
    if augment.speed_speakers == "new" and "speaker" not in task.needs:
        raise DataError(
            f"{where}: augment.speed_speakers is for tasks that learn speakers; leave it out"
        )


def _of(corpus: Corpus, utterances: Sequence[Utterance]) -> list[Utterance]:
    mine = {id(u) for u in corpus.utterances}  # another corpus may have the same names
    return [u for u in utterances if id(u) in mine]


def load_tasks(
    recipe: Recipe,
    states: Mapping[str, Mapping[str, object]] | None = None,
    progress: Progress | None = None,
) -> dict[str, TaskData]:
    """Every task of the recipe with its data; a corpus that several use is read once."""
    corpora: dict[str, Corpus] = {}
    found = {}
    for name, entry in recipe.tasks.items():
        for corpus in (entry.corpus, *entry.extra_training):
            if corpus not in corpora:
                corpora[corpus] = find_corpus(corpus, progress)
        state = states[name] if states else None
        extra = [corpora[corpus] for corpus in entry.extra_training]
        found[name] = load_task(name, entry, corpora[entry.corpus], state, extra)
    return found


def _trials(corpus: Corpus, utterances: Sequence[Utterance]) -> Sequence[Trial]:
    """The corpus's own trials within a split, or pairs made of it."""
    ids = {u.id for u in utterances}
    own = [t for t in corpus.trials if t.enrolment in ids and t.test in ids]
    return own if {t.same for t in own} == {True, False} else make_trials(utterances)
