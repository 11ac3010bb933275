"""Where known tokens stand: the best path of CTC through them (Graves et al. 2006, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLANK = 0


class Stand(NamedTuple):
    """Frames of one token: the first, the one after the last, and its mean probability there."""

    begin: int
    end: int
    score: float


def align(log_probs: Tensor, ids: Sequence[int]) -> list[Stand] | None:
    """Each token's frames on the most probable path, log_probs (T, C); None if T is too short.

    States are blank, token, blank, token, ..., blank; a step stays, goes on, or leaves out a blank
    between two tokens that differ.
    """
    if not ids:
        return []
    scores = log_probs.detach().double().cpu()
    states = torch.full((2 * len(ids) + 1,), BLANK)
    states[1::2] = torch.tensor(ids)
    emitted = scores[:, states]  # (T, 2 U + 1)
    jump = torch.zeros(len(states), dtype=torch.bool)
    jump[3::2] = states[3::2] != states[1:-2:2]
    never = torch.tensor(float("-inf"), dtype=torch.float64)
    best = torch.full((len(states),), float("-inf"), dtype=torch.float64)
    best[:2] = emitted[0, :2]
    came = torch.zeros(len(scores), len(states), dtype=torch.long)
    for frame in range(1, len(scores)):
        one = torch.cat([never[None], best[:-1]])
        two = torch.where(jump, torch.cat([never.expand(2), best[:-2]]), never)
        ways, came[frame] = torch.stack([best, one, two]).max(0)
        best = ways + emitted[frame]
    state = len(states) - 1 - int(best[-2] > best[-1])
    if best[state] == never:
        return None
    path = [state]
    for frame in range(len(scores) - 1, 0, -1):
        state -= int(came[frame, state])
        path.append(state)
    path.reverse()
    found = []
    for index in range(len(ids)):
        frames = [frame for frame, at in enumerate(path) if at == 2 * index + 1]
        score = float(emitted[frames, 2 * index + 1].exp().mean())
        found.append(Stand(frames[0], frames[-1] + 1, score))
    return found
