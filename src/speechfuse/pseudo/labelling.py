"""Label a corpus with a teacher: ask, keep what is sure, write a manifest.

labelling.json   which teacher and which utterances          answers.jsonl   grows while it works
manifest.jsonl   the labelled ones, for `prepare`            teachers.json   the teacher's card
summary.json     how many of each class, kept or why not
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speechfuse.audio import read_audio
from speechfuse.checkpoint import write_text
from speechfuse.data.batching import by_duration
from speechfuse.data.corpus import Corpus
from speechfuse.data.teachers import Card, seen_of_names
from speechfuse.errors import DataError, RunError, did_you_mean
from speechfuse.pseudo.answers import Answer, Answers
from speechfuse.pseudo.claim import check_claim, claim_of, write_claim
from speechfuse.pseudo.hub_teacher import HubTeacher
from speechfuse.pseudo.manifest import summary_of, write_manifest
from speechfuse.pseudo.run_teacher import RunTeacher
from speechfuse.pseudo.selection import Balance, balanced, judge, targets_of
from speechfuse.pseudo.teacher import Teacher
from speechfuse.taskdata import find_corpus
from speechfuse.types import Progress, Utterance

BATCH_SECONDS = 60.0  # audio that is computed together
_DIGITS = 6  # of a probability; its last ones depend on the machine


def find_teacher(source: str, task: str | None = None, revision: str | None = None) -> Teacher:
    """A run folder, a folder in the Hugging Face layout, or a name on the hub.

    Raises:
        RunError: a folder that is neither, or a run without what is needed.
        UpstreamError: no such folder, nothing on the hub, or no classifier.
    """
    folder = Path(source)
    if (folder / "recipe.yaml").is_file():
        return RunTeacher(folder, task)
    if folder.exists() and not (folder / "config.json").is_file():
        raise RunError(
            f"{source} is no teacher: neither a run (no recipe.yaml) nor a model in the Hugging "
            "Face layout (no config.json); name a folder of speechfuse train, or of save_pretrained"
        )
    if task is not None:
        raise RunError(f"--task {task}: {source} is no run, it has no tasks; leave it out")
    return HubTeacher(source, revision)


def pseudo_label(
    name: str,
    teacher: Teacher,
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    mapping: Mapping[str, str] | None = None,
    threshold: float = 0.9,
    balance: Balance = "equal",
    only: Mapping[str, Collection[str]] | None = None,
    seen: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label the corpus of that name into `folder`; goes on where an earlier call stopped.

    Other labels, thresholds and caps choose anew from the same answers. seen: corpora that the
    teacher was trained on besides those on its card.

    Returns the summary that is in the folder.

    Raises:
        DataError: options out of range, classes that do not fit, missing audio, nothing kept.
        RunError: the folder holds something else.
    """
    if not 0 <= threshold <= 1:
        raise DataError(f"threshold {threshold:g} is no probability; expected 0 to 1, like 0.9")
    if isinstance(balance, int) and balance < 1:
        raise DataError(f"balance {balance}: expected a number above 0, equal or none")
    targets = targets_of(teacher.classes, labels, mapping or {}, teacher.wanted)
    corpus = find_corpus(name, progress)
    utterances = _chosen(corpus, only or {})
    lost = [u for u in utterances if not u.audio.is_file()]
    if lost:
        raise DataError(
            f"{corpus.name} has no audio for {len(lost)} of {len(utterances)} utterances, first "
            f"{lost[0].audio}; put it back, or prepare the corpus again"
        )
    check_claim(folder, claim := claim_of(corpus, utterances, teacher))
    teacher.load()
    write_claim(folder, claim)
    answers = Answers(folder / "answers.jsonl")
    _ask(teacher, utterances, answers, progress)
    wanted = list(dict.fromkeys(targets.values()))
    judged = [judge(answers.found[u.id], teacher.classes, targets, threshold) for u in utterances]
    verdicts = balanced(judged, wanted, balance, threshold)
    if not any(one.why_not is None for one in verdicts):
        raise DataError(
            f"no answer of {teacher.source} is a label at a threshold of {threshold:g}; lower it, "
            f"or look at {folder / 'answers.jsonl'}"
        )
    known = dict.fromkeys([*teacher.seen, *seen_of_names(seen)])
    card = Card(
        teacher.name,
        teacher.source,
        threshold,
        labelled=corpus.source or corpus.name,
        seen=tuple(known),
        knows=bool(known),
    )
    pairs = list(zip(utterances, verdicts, strict=True))
    summary = summary_of(corpus, teacher.label, card, wanted, pairs)
    write_text(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_manifest(folder, corpus, teacher.label, card, pairs)
    return summary


def _chosen(corpus: Corpus, only: Mapping[str, Collection[str]]) -> list[Utterance]:
    """Utterances with one of these values in a column.

    Raises:
        DataError: no utterance has one of them.
    """
    found = list(corpus.utterances)
    for column, values in only.items():
        known = {text for u in found if (text := u.column(column)) is not None}
        for value in values:
            if value not in known:
                hint = did_you_mean(value, known)
                raise DataError(f"{corpus.name}: no {column} is '{value}'; {hint}")
        found = [u for u in found if u.column(column) in values]
    return found


def _ask(
    teacher: Teacher,
    utterances: Sequence[Utterance],
    answers: Answers,
    progress: Progress | None,
) -> None:
    """Answer what is missing. Batches are those of a call that was never stopped."""
    batches = by_duration(utterances, BATCH_SECONDS, silence=teacher.silence, equal=teacher.equal)
    done = 0
    for batch in batches:
        missing = {u.id for u in batch if u.id not in answers.found}
        if missing:
            answers.append([one for one in _answered(teacher, batch) if one.id in missing])
        done += len(batch)
        if progress:
            progress("utterances labelled", done, len(utterances))


def _answered(teacher: Teacher, batch: Sequence[Utterance]) -> Iterator[Answer]:
    clips, problems = {}, {}
    for u in batch:
        try:
            clip = read_audio(u.audio, u.start, u.duration)
        except DataError as error:
            problems[u.id] = f"unreadable: {error}"
            continue
        if len(clip) < teacher.min_samples:
            problems[u.id] = "too short for the teacher"
        elif teacher.max_samples and len(clip) > teacher.max_samples:
            problems[u.id] = "longer than the teacher reads"
        else:
            clips[u.id] = clip
    found = teacher.probabilities(list(clips.values())) if clips else torch.zeros(0, 0)
    rows = dict(zip(clips, found.tolist(), strict=True))
    for u in batch:
        row = rows.get(u.id, [])
        if u.id not in problems and not torch.isfinite(torch.tensor(row)).all():
            problems[u.id] = "the teacher's answer is no number"
        if u.id in problems:
            yield Answer(u.id, problem=problems[u.id])
        else:
            yield Answer(u.id, tuple(round(value, _DIGITS) for value in row))
