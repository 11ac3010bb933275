"""Whether alpha follows what a prompt in words says: of paraphrases, some never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.evaluate import passes
from speechfuse.experiments.alpha.sample import Opened, means, read_alpha
from speechfuse.experiments.probing.ridge import rows_held_out
from speechfuse.metrics import Evidence, SpeakerSums, r_squared
from speechfuse.recipe import read_yaml

FOLDS = 6
LEAST = 20  # paraphrases of a task; of fewer no R2 can be told


@dataclass(frozen=True)
class Embedded:
    """What a ridge regression reads of alpha in one embedding of prompts: R2 over prompts."""

    everything: SpeakerSums  # of alpha as it is
    within: SpeakerSums  # of alpha minus its mean over the task's prompts
    unseen: SpeakerSums  # the latter, of prompts that the run was not trained on


def read_paraphrases(path: Path, known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Prompts by task from a YAML file.

    Raises:
        RecipeError: no such file, an unknown task, or something that is no list of texts.
    """
    found = read_yaml(path)
    for task, prompts in found.items():
        if task not in known:
            raise RecipeError(f"{path}: no task '{task}'; {did_you_mean(str(task), known)}")
        if not (isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts)):
            raise RecipeError(f"{path}: {task}: expected a list of prompts, found {prompts!r}")
    return found


@torch.no_grad()
def prompts_read(
    run: Opened, prompts: Mapping[str, Sequence[str]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean alpha over the sample at the last position of every prompt, (P, L), and embeddings.

    By name: what stands for each prompt, (P, D).
    """
    assert run.model.reader is not None
    context = run.model.reader.context
    assert isinstance(context, PromptedTransformer)
    assert context.words is not None
    alpha, own, last = [], [], []
    for task, several in prompts.items():
        for words in several:
            own.append(context.words(torch.tensor([*words.encode()])).mean(0))
            states: list[Tensor] = []
            cells = read_alpha(run, run.model, task, "prompt", prompt=words, states=states)
            alpha.append(means(cells).mean(0))
            last.append(torch.cat(states).mean(0))
    found = {"mean embedding of its bytes": own, "hidden state of its last position": last}
    return torch.stack(alpha), {n: torch.stack(rows).double() for n, rows in found.items()}


def probed(
    x: Tensor, alpha: Tensor, tasks: Sequence[str], names: Sequence[str], unseen: Sequence[bool]
) -> Embedded:
    """R2 of a linear map x (P, D) -> alpha (P, L), each prompt predicted from the other folds.

    Every sixth prompt of a task is in one fold, the strength of the ridge is chosen inside the
    others. Resampled are prompts.
    """
    numbers = [list(tasks[:i]).count(task) for i, task in enumerate(tasks)]
    folds = torch.tensor([number % FOLDS for number in numbers])
    level = torch.zeros_like(alpha)
    for task in set(tasks):
        mine = torch.tensor([one == task for one in tasks])
        level[mine] = alpha[mine].mean(0)
    everything = _evidence(x, alpha, folds, names)
    within = _evidence(x, alpha - level, folds, names)
    kept = [i for i, new in enumerate(unseen) if new]
    return Embedded(
        everything,
        within,
        SpeakerSums([names[i] for i in kept], within.rows[kept], r_squared),
    )


def _evidence(x: Tensor, y: Tensor, folds: Tensor, names: Sequence[str]) -> SpeakerSums:
    def score(rows: Tensor, found: Tensor) -> float:
        return -float((y[rows] - found).square().sum())

    def weigh(rows: Tensor, held: Tensor) -> Tensor:
        return torch.ones(len(rows), dtype=x.dtype)

    found, _ = rows_held_out(x, y, folds, weigh, score)
    parts = [torch.ones_like(y), y, y.square(), (y - found).square()]
    return SpeakerSums(list(names), torch.cat(parts, 1).numpy(), r_squared)


@torch.no_grad()
def score_with(run: Opened, task: str, prompts: Sequence[str]) -> Evidence:
    """The task's metric on its test set, the utterances taking the prompts in turn."""
    data, number = run.tasks[task], 0
    utterances, predictions = [], []
    for batch in passes(run.model, data.splits["test"]):
        words = [prompts[(number + i) % len(prompts)] for i in range(len(batch))]
        number += len(batch)
        read = [one.batch(batch) for one in run.inputs[task]]
        utterances += batch
        predictions += run.model.predict(read, task, words)
    rows = data.task.table(utterances, predictions, data.trials["test"])
    return data.task.score(rows)[data.task.primary]
