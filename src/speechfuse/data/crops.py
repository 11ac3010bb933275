"""Random stretches of utterances, cut from stored layers at one time span for all upstreams."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np


def random_spans(
    frames: Sequence[Sequence[int]], rates: Sequence[float], seconds: float, seed: int
) -> list[list[slice]]:
    """Frames to read of each utterance, by upstream; a shorter utterance is read whole.

    A crop begins where frames of all upstreams begin, so that they stay aligned by time:

        50 Hz   |  |  |  |  |  |  |  |  |  |  |
        40 Hz   |   |   |   |   |   |   |   |
                ^               ^ every 100 ms          (25 ms and 20 ms)

    frames: how many there are, by upstream and utterance. rates: Hz, by upstream.
    """
    random = np.random.default_rng(seed)
    period = common_period(rates)
    sizes = [int(seconds * rate + 1e-6) for rate in rates]
    spans: list[list[slice]] = [[] for _ in rates]
    for counts in zip(*frames, strict=True):
        spare = min((n - size) / rate for n, size, rate in zip(counts, sizes, rates, strict=True))
        start = period * int(random.integers(int(max(0.0, spare) / period + 1e-6) + 1))
        for found, count, size, rate in zip(spans, counts, sizes, rates, strict=True):
            first = round(float(start) * rate)
            found.append(slice(first, min(count, first + size)))
    return spans


def common_period(rates: Sequence[float]) -> Fraction:
    """Seconds after which frames of all these rates begin together.

    >>> common_period([50.0, 40.0])
    Fraction(1, 10)
    """
    exact = [Fraction(rate).limit_denominator(1000) for rate in rates]
    return Fraction(lcm(*(r.denominator for r in exact)), gcd(*(r.numerator for r in exact)))
