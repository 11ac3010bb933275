"""Classes over time: what a head says of a few seconds of the frames that it read at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from speechfuse.types import Frames


@dataclass(frozen=True)
class Windows:
    """Near-equal windows of every utterance as a batch of their own.

    of: the utterance of each. times: seconds from its beginning, of each. No window is there of an
    utterance that would have a single one, and none of one that is read as a vector.
    """

    frames: Frames
    of: Sequence[int]
    times: Sequence[tuple[float, float]]


def windows_of(frames: Frames, seconds: float) -> Windows | None:
    """None if there is not one.

    >>> frames = Frames(torch.arange(20.0).view(2, 10, 1), torch.tensor([10, 2]), 2.0)
    >>> found = windows_of(frames, 2.0)
    >>> found.of, found.times
    ([0, 0], [(0.0, 2.5), (2.5, 5.0)])
    >>> found.frames.hidden[..., 0].tolist()
    [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]
    """
    rows, of, times = [], [], []
    for row, size in enumerate(frames.lengths.tolist()):
        count = min(size, round(size / frames.frame_rate / seconds))
        if frames.hidden.shape[1] == 1 or count < 2:
            continue
        edges = [round(size * i / count) for i in range(count + 1)]
        for begin, end in pairwise(edges):
            rows.append(frames.hidden[row, begin:end])
            of.append(row)
            times.append((begin / frames.frame_rate, end / frames.frame_rate))
    if not rows:
        return None
    lengths = torch.tensor([len(one) for one in rows], device=frames.lengths.device)
    hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Windows(Frames(hidden, lengths, frames.frame_rate), of, times)
