"""One held-out sample that every prompt is tried on, and what the reader makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechfuse.contracts import ShowsLayers
from speechfuse.errors import RunError
from speechfuse.evaluate import open_run, passes
from speechfuse.extract import Before
from speechfuse.heads.text import Text
from speechfuse.inputs import Inputs
from speechfuse.model import FusionModel
from speechfuse.taskdata import TaskData
from speechfuse.types import Generated, LayerStack, Progress, Tokens, Utterance, Where

Cells = list[Tensor]  # of each utterance, alpha of the positions looked at, (T, L) float64


@dataclass(frozen=True)
class Opened:
    """A finished run that has a context, and held-out utterances that none of its tasks knows."""

    folder: Path
    model: FusionModel
    tasks: Mapping[str, TaskData]
    inputs: Mapping[str, Sequence[Inputs]]
    batches: Sequence[tuple[str, Sequence[Utterance]]]  # by the task whose stored layers are read

    @property
    def speakers(self) -> list[str]:
        """Of each utterance; one whose speaker is not known counts as a speaker."""
        return [u.speaker or u.id for _, batch in self.batches for u in batch]

    def stacks(self) -> Iterator[list[LayerStack]]:
        """Of each batch of the sample."""
        for name, batch in self.batches:
            yield self.model.stacks([one.batch(batch) for one in self.inputs[name]])


def open_sample(
    folder: Path, size: int, progress: Progress | None = None, before: Before | None = None
) -> Opened:
    """A run with up to `size` test utterances of each of its corpora.

    before: called with what is to be extracted, and may refuse it.

    Raises:
        RunError: no finished run there, one without a context, or with an interface over its
            layers that shows no weights.
    """
    run, model, tasks, inputs = open_run(folder, progress, before)
    context = run.recipe().context
    if context is None or model.reader is None:
        raise RunError(
            f"{folder} has no context, so no prompt chooses its layers; train with context: "
            "{kind: prompted_transformer}, or look at: speechfuse weights"
        )
    if not isinstance(model.reader.interface, ShowsLayers):
        raise RunError(
            f"{folder}: context.interface '{context.interface.kind}' shows no weights of layers; "
            "use prompt_adaptive"
        )
    return Opened(folder, model, tasks, inputs, [*_batches(model, tasks, size)])


def _batches(
    model: FusionModel, tasks: Mapping[str, TaskData], size: int
) -> Iterator[tuple[str, Sequence[Utterance]]]:
    known = {_place(u) for data in tasks.values() for u in data.splits["train"]}
    for name, data in tasks.items():
        new = [u for u in data.splits["test"] if _place(u) not in known]
        known |= {_place(u) for u in new}
        chosen = new[:: max(1, len(new) // size)][:size]
        for batch in passes(model, chosen):
            yield name, batch


def _place(utterance: Utterance) -> tuple[str, float]:
    return str(utterance.audio), utterance.start


def swapped(
    model: FusionModel, task: str, *, scalar_of: str | None = None, prompt_of: str | None = None
) -> FusionModel:
    """The same model, but one task has the scalars or the prompt of another one.

    A scalar that all tasks share stays what it is. Words are those that stand first.
    """
    made = deepcopy(model)
    reader = made.reader
    assert reader is not None
    logits = getattr(reader.interface, "logits", {})
    if scalar_of is not None and task in logits:
        logits[task] = deepcopy(logits[scalar_of])
    if prompt_of is not None and prompt_of != task:
        context: Any = reader.context
        context.worded.pop(task, None)
        if prompt_of in context.worded:
            context.worded[task] = context.worded[prompt_of]
        else:
            context.prompts[task] = deepcopy(context.prompts[prompt_of])
    return made


@torch.no_grad()
def written(run: Opened, task: str) -> list[Tokens] | None:
    """What a task that writes makes of the sample, batch by batch; None if it writes nothing."""
    if not isinstance(run.model.head_of(task), Text):
        return None
    found = []
    for stacks in run.stacks():
        texts: list[Generated] = run.model.predict(stacks, task)
        rows = [torch.tensor(one.ids, dtype=torch.long) for one in texts]
        lengths = torch.tensor([len(row) for row in rows])
        found.append(Tokens(pad_sequence(rows, batch_first=True), lengths))
    return found


@torch.no_grad()
def read_alpha(
    run: Opened,
    model: FusionModel,
    task: str,
    where: Where,
    *,
    texts: Sequence[Tokens] | None = None,
    gate: str | None = None,
    prompt: str | None = None,
    states: list[Tensor] | None = None,
) -> Cells:
    """Alpha of every utterance at some positions.

    texts: what is written after the prompt. gate: the task whose fusion of the encoders is read,
    if not the same. prompt: in words. states: takes the last layer at the first of the positions,
    (B, D) of each batch.
    """
    reader = model.reader
    assert reader is not None
    assert isinstance(reader.interface, ShowsLayers)
    whole = bool(getattr(reader.interface, "reads_prefix", False))
    found: Cells = []
    for index, stacks in enumerate(run.stacks()):
        frames = model.fuse(stacks, gate or task)
        prompts = None if prompt is None else [prompt] * len(frames.lengths)
        text = None if texts is None else texts[index]
        sequences = reader.context(frames, task, text, prompts)
        read = reader.normalised(sequences.at(where))
        if states is not None:
            states.append(read.layers[-1][:, 0])
        heard = reader.normalised(sequences.at("prefix")) if whole else read
        weights = reader.interface.layer_weights(heard, task)[""].double()
        if weights.dim() == 1:
            weights = weights[:, None, None]
        elif whole:  # one for each utterance, shown at every position
            weights = weights[:, :, :1]
        weights = weights.expand(-1, *read.layers[0].shape[:2])
        found += [weights[:, i, :size].T for i, size in enumerate(read.lengths.tolist())]
    return found


def means(cells: Cells) -> Tensor:
    """Of each utterance over its positions, (U, L)."""
    return torch.stack([one.mean(0) for one in cells])
