"""The whole analysis of one run, and of several seeds of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from torch import Tensor

from speechfuse.checkpoint import Run
from speechfuse.errors import RunError
from speechfuse.experiments.alpha.divergence import js_bits, mean_over_utterances
from speechfuse.experiments.alpha.flags import alpha_flags
from speechfuse.experiments.alpha.paraphrases import (
    LEAST,
    Embedded,
    probed,
    prompts_read,
    read_paraphrases,
    score_with,
)
from speechfuse.experiments.alpha.sample import Opened, means, open_sample, read_alpha, written
from speechfuse.experiments.alpha.shares import crossed, variance_shares
from speechfuse.experiments.alpha.swaps import Swap, swaps
from speechfuse.extract import Before
from speechfuse.metrics import Evidence, SpeakerSums
from speechfuse.types import Progress, Where

PROMPT, READ = "end of the prompt", "where the head reads"
PLACES: Mapping[str, Where] = {PROMPT: "prompt", "speech": "speech"}


@dataclass(frozen=True)
class Words:
    """What prompts in words show."""

    counts: tuple[int, int]  # trained on and not, of all tasks
    embedded: Mapping[str, Embedded]  # by what stands for a prompt
    trained: Mapping[str, Evidence]  # metric by task, with prompts that were trained on
    unseen: Mapping[str, Evidence]


@dataclass(frozen=True)
class Alphas:
    """One run: alpha of every task's prompt on the same held-out audio."""

    run: Opened
    alpha: Mapping[tuple[str, str], Tensor]  # by place and task: mean of each utterance, (U, L)
    apart: Mapping[tuple[str, str, str], SpeakerSums]  # by place and two tasks, bits
    swaps: Sequence[Swap]
    shares: Mapping[tuple[str, str], SpeakerSums]  # by place and factor
    words: Words | None
    flags: Sequence[str]


def analyse_alpha(
    folders: Sequence[Path],
    size: int,
    prompts: Path | None = None,
    progress: Progress | None = None,
    before: Before | None = None,
) -> list[Alphas]:
    """All of it for runs that differ in nothing but their seed.

    size: test utterances of each corpus. prompts: a file of prompts that were not trained on.
    before: called with what is to be extracted, and may refuse it.

    Raises:
        RunError: no finished run, one without a context, or runs of different recipes.
        RecipeError: prompts for runs without any, or too few of them.
    """
    first = Run(folders[0]).recipe()
    for folder in folders[1:]:
        if Run(folder).recipe().model_copy(update={"seed": first.seed}) != first:
            raise RunError(
                f"{folder} and {folders[0]} differ in more than their seed; give one at a time"
            )
    found = []
    for number, folder in enumerate(folders, start=1):
        found.append(_analysed(open_sample(folder, size, progress, before), prompts))
        if progress:
            progress("runs", number, len(folders))
    return found


def _analysed(run: Opened, prompts: Path | None) -> Alphas:
    recipe = Run(run.folder).recipe()
    words = None if prompts is None else _words(run, prompts)
    texts = {task: written(run, task) for task in run.tasks}
    alpha, flags = {}, []
    for task in run.tasks:
        cells = {
            PROMPT: read_alpha(run, run.model, task, "prompt"),
            READ: read_alpha(run, run.model, task, run.model.places[task], texts=texts[task]),
        }
        for place, several in cells.items():
            alpha[place, task] = means(several)
        assert run.model.reader is not None
        found = alpha_flags(run.model.reader.interface, cells[READ], recipe.training.layer_rate)
        flags += [failure.of(task).line for failure in found]
    apart = {
        (place, one, other): mean_over_utterances(
            js_bits(alpha[place, one], alpha[place, other]), run.speakers
        )
        for place in (PROMPT, READ)
        for one, other in combinations(run.tasks, 2)
    }
    shares = {
        (place, factor): evidence
        for place, where in PLACES.items()
        for factor, evidence in variance_shares(crossed(run, where), run.speakers).items()
    }
    return Alphas(run, alpha, apart, [*swaps(run, texts)], shares, words, flags)


def _words(run: Opened, path: Path) -> Words:
    """Of the run's own prompts and those of a file."""
    recipe = Run(run.folder).recipe()
    unseen = read_paraphrases(path, run.tasks)
    own = {task: list(recipe.tasks[task].prompts) for task in unseen}
    for task, several in own.items():
        new = [words for words in unseen[task] if words not in several]
        if not several or len(new) < len(unseen[task]) or len(several) + len(new) < LEAST:
            raise RunError(
                f"{path}: {task}: expected {LEAST} or more prompts, those that the run was trained "
                f"on and others; found {len(several)} trained on, and {len(new)} that are new of "
                f"{len(unseen[task])}"
            )
    together = {task: own[task] + unseen[task] for task in unseen}
    flat = [(task, words) for task, several in together.items() for words in several]
    tasks = [task for task, _ in flat]
    names = [f"{task}: {words}" for task, words in flat]
    fresh = [words in unseen[task] for task, words in flat]
    alpha, embeddings = prompts_read(run, together)
    embedded = {name: probed(x, alpha, tasks, names, fresh) for name, x in embeddings.items()}
    return Words(
        (len(fresh) - sum(fresh), sum(fresh)),
        embedded,
        {task: score_with(run, task, several) for task, several in own.items()},
        {task: score_with(run, task, several) for task, several in unseen.items()},
    )
