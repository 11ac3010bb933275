"""Known ways in which alpha goes wrong: it stays even, or it no longer heeds the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from speechfuse.checkpoint import Run
from speechfuse.contracts import Interface
from speechfuse.experiments.alpha.divergence import evenness
from speechfuse.experiments.alpha.sample import Opened, read_alpha, written
from speechfuse.experiments.failures import Failure

UNIFORM = 0.99  # entropy of layer weights over that of equal ones
STATIC = 0.01  # standard deviation of alpha over inputs, in shares of its mean


def alpha_flags(
    interface: Interface, cells: Sequence[Tensor], layer_rate: float
) -> Iterator[Failure]:
    """Those of one task.

    cells: of each utterance, alpha of the positions that the head reads, (T, L). One that is
    static because the recipe says so is not reported.
    """
    alpha = torch.cat([*cells])
    layers = alpha.shape[1]
    if layers == 1:
        return
    share = float(evenness(alpha).mean())
    if share > UNIFORM:
        yield Failure(
            "uniform alpha",
            f"alpha is uniform, entropy {100 * share:.2f} % of that of {layers} equal layers; "
            f"raise training.layer_rate from {layer_rate:g}, or steps",
        )
    spread = float(alpha.var(0, correction=0).mean().sqrt()) * layers
    if spread < STATIC and not interface.learned_weights():
        yield Failure(
            "static alpha",
            f"alpha has collapsed to static, it varies over inputs by {100 * spread:.2f} % of its "
            "mean; try context.interface.scores=dynamic, or more training.steps",
        )


def flags_of(run: Opened) -> Iterator[tuple[str, Failure]]:
    """Those of every task, with its name."""
    assert run.model.reader is not None
    rate = Run(run.folder).recipe().training.layer_rate
    for task in run.tasks:
        where, texts = run.model.places[task], written(run, task)
        cells = read_alpha(run, run.model, task, where, texts=texts)
        for failure in alpha_flags(run.model.reader.interface, cells, rate):
            yield task, failure
