"""Scalar, prompt or both of one task taken from another: what becomes of alpha and of the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from speechfuse.checkpoint import Run
from speechfuse.evaluate import predicted_table
from speechfuse.experiments.alpha.divergence import js_bits, mean_over_utterances
from speechfuse.experiments.alpha.sample import Opened, means, read_alpha, swapped
from speechfuse.metrics import Evidence, SpeakerSums
from speechfuse.types import Tokens

SWAPS = {"scalar": (True, False), "prompt": (False, True), "both": (True, True)}


@dataclass(frozen=True)
class Swap:
    """One task with what another one has, the rest of the model and of the input as they were."""

    task: str
    other: str
    what: str  # of SWAPS
    divergence: SpeakerSums  # of alpha from that of the task as it is, bits
    own: Evidence  # the task's metric as it is
    with_other: Evidence  # and with the other's


def swaps(run: Opened, texts: Mapping[str, Sequence[Tokens] | None]) -> Iterator[Swap]:
    """Every pair of tasks both ways, all three swaps.

    Alpha is compared where the task's head reads, on the sample, of each utterance's mean over
    positions; what is written there is the task's own text in both. The metric is of all test
    utterances of the task, which writes anew.
    """
    for task, other in permutations(run.tasks, 2):
        where, data = run.model.places[task], run.tasks[task]
        plain = means(read_alpha(run, run.model, task, where, texts=texts[task]))
        own = _score(run, task, Run(run.folder).table("test", task))
        for what, (scalar, prompt) in SWAPS.items():
            model = swapped(
                run.model,
                task,
                scalar_of=other if scalar else None,
                prompt_of=other if prompt else None,
            )
            found = means(read_alpha(run, model, task, where, texts=texts[task]))
            apart = mean_over_utterances(js_bits(plain, found), run.speakers)
            rows = predicted_table(model, data, run.inputs[task], "test")
            yield Swap(task, other, what, apart, own, _score(run, task, rows))


def _score(run: Opened, task: str, rows: list[dict[str, str]]) -> Evidence:
    known = run.tasks[task].task
    return known.score(rows)[known.primary]
