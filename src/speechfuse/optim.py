"""Which parameters learn at which rate, and how the rate rises and falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from speechfuse.recipe import TrainingRecipe


def make_optimizer(training: TrainingRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW; tuned upstreams and logits of layer weights have rates of their own.

    In a few hundred steps logits hardly leave zero at the rate of the other weights; decay would
    pull them to the plain mean.
    """
    upstream, logits, others = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("upstreams."):
            upstream.append(parameter)
        elif _is_logits(name, model):
            logits.append(parameter)
        else:
            others.append(parameter)
    groups: list[dict[str, Any]] = [{"params": others}]
    if upstream:
        groups.append({"params": upstream, "lr": training.upstream_learning_rate})
    if logits:
        rate = training.learning_rate * training.layer_rate
        groups.append({"params": logits, "lr": rate, "weight_decay": 0.0})
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=training.learning_rate, weight_decay=training.weight_decay)


def _is_logits(name: str, model: nn.Module) -> bool:
    """`logits`, or one of several in a dictionary of that name."""
    owner, _, last = name.rpartition(".")
    several = owner.endswith(".logits") and isinstance(model.get_submodule(owner), nn.ParameterDict)
    return last == "logits" or several


def make_rates(training: TrainingRecipe, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """A linear warm-up, then a fall to zero, along a line or half a cosine, or none."""
    warm = max(1, round(training.warmup * training.steps))
    falling: Mapping[str, Callable[[float], float]] = {
        "linear": lambda left: left,
        "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
        "constant": lambda left: 1.0,
    }
    fall = falling[training.schedule]

    def scale(step: int) -> float:
        left = (training.steps - step) / max(1, training.steps - warm)  # of the fall
        return min((step + 1) / warm, fall(min(max(left, 0.0), 1.0)))

    return LambdaLR(optimizer, scale)
