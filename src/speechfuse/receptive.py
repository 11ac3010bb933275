"""Which layers a fused vector depends on: its gradient to every layer that the interface reads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from speechfuse.contracts import Interface
from speechfuse.ops import length_mask, seed_for, zero_padding
from speechfuse.types import LayerStack

PROBES = 8  # random directions; zeros stay exactly zero with any number


@torch.enable_grad()
def receptive_field(interface: Interface, stack: LayerStack, task: str) -> Tensor:
    """Share of each layer in the gradient of each block of output features, (blocks, L).

        share[o, l] = size[o, l] / sum over layers,   size[o, l] = |d hidden[block o] / d layers[l]|

    The norm is that of the Jacobian over valid frames (Frobenius), found with random signs v:
    the mean of |J' v|^2 is |J|^2. A weighted sum gives its weights. A block that nothing moves,
    for example behind a ReLU that is always off, has zeros.
    """
    layers = tuple(layer.detach().requires_grad_() for layer in stack.layers)
    fused = interface(replace(stack, layers=layers), task)
    hidden = zero_padding(fused.hidden, fused.lengths)
    random = torch.Generator().manual_seed(seed_for(0, "receptive_field"))
    valid = length_mask(stack.lengths, layers[0].shape[1])[..., None]
    rows = []
    for block in interface.blocks():
        features = hidden[..., block]
        squares = torch.zeros(len(layers))
        for _ in range(PROBES):
            signs = torch.randint(0, 2, features.shape, generator=random) * 2.0 - 1.0
            grads = torch.autograd.grad(
                features, layers, signs.to(features), retain_graph=True, allow_unused=True
            )
            squares += torch.stack(
                [torch.zeros(()) if g is None else (g * valid).square().sum().cpu() for g in grads]
            )
        sizes = squares.sqrt()
        rows.append(sizes / sizes.sum().clamp_min(1e-30))
    return torch.stack(rows)
