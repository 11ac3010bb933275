"""Which recordings are copies of each other, whatever was done to level, format or sample rate.

    energies  33 bands from 300 to 3000 Hz of 128 ms, every 16 ms
    bits      is a band's step to the next one higher than it was a frame ago: 32 of each frame

After Haitsma & Kalker 2002 ("A highly robust audio fingerprinting system"). Copies differ in few
bits at the right offset, others in half of them. To find candidates without comparing all pairs,
a recording keeps the smallest hashes of its short words of bits: copies share some.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, float64
from numpy.typing import NDArray

RATE = 16000  # Hz, of the samples that are read
WINDOW, HOP = 2048, 256  # samples
BANDS = 33
LOWEST, HIGHEST = 300.0, 3000.0  # Hz, which a telephone passes
QUIET = 1e-3  # of the loudest frame's energy: what is quieter has no say
SKETCH = 64  # hashes that are kept
LEAST_FRAMES = 12  # that two recordings have to share, 0.3 s of audio with its window
_GROUPS = ((0, 12), (10, 22), (20, 32))  # bits of a word, from a frame and from one 96 ms later
_LATER = 6  # frames

Bits = NDArray[np.uint32]  # (T,), 32 bits of each frame


def fingerprint(samples: NDArray[float32]) -> tuple[Bits, NDArray[np.bool_]]:
    """Bits of each frame, and whether it is loud enough to count; samples: mono at RATE."""
    if len(samples) < WINDOW + HOP:
        return np.zeros(0, np.uint32), np.zeros(0, bool)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    energies = np.empty((len(frames), BANDS))
    edges = np.rint(np.geomspace(LOWEST, HIGHEST, BANDS + 1) * WINDOW / RATE).astype(int)
    taper = np.hanning(WINDOW).astype(float32)
    for start in range(0, len(frames), 256):  # a few megabytes at a time
        power = np.abs(np.fft.rfft(frames[start : start + 256] * taper, axis=1)) ** 2
        sums = np.concatenate([np.zeros((len(power), 1)), power.cumsum(1)], axis=1)
        energies[start : start + 256] = sums[:, edges[1:]] - sums[:, edges[:-1]]
    steps = np.diff(np.log(energies + 1e-12), axis=1)
    signs = np.diff(steps, axis=0) > 0
    bits = (signs * (1 << np.arange(32, dtype=np.uint64))).sum(1).astype(np.uint32)
    total: NDArray[float64] = energies.sum(1)
    loud = np.minimum(total[1:], total[:-1]) > QUIET * total.max()
    return bits, loud & bool(total.max() > 1e-9)


def sketch(bits: Bits, loud: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """The smallest hashes of all words of a recording, at most SKETCH."""
    both = loud[:-_LATER] & loud[_LATER:]
    early, late = bits[:-_LATER][both].astype(np.uint64), bits[_LATER:][both].astype(np.uint64)
    words = []
    for group, (low, high) in enumerate(_GROUPS):
        mask = np.uint64((1 << high) - (1 << low))
        word = ((early & mask) >> np.uint64(low)) << np.uint64(12) | (late & mask) >> np.uint64(low)
        words.append(word | np.uint64(group << 24))
    found = np.unique(np.concatenate(words)) if words else np.zeros(0, np.uint64)
    with np.errstate(over="ignore"):  # a product modulo 2**64 mixes the bits
        mixed = (found + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    return np.sort(mixed)[:SKETCH]


def bit_errors(
    one: Bits, one_loud: NDArray[np.bool_], two: Bits, two_loud: NDArray[np.bool_]
) -> float:
    """Share of differing bits at the best offset; 1.0 if no offset shares enough loud frames.

    Enough is half of the loud frames of the one that has fewer, and LEAST_FRAMES.
    """
    need = max(LEAST_FRAMES, min(one_loud.sum(), two_loud.sum()) // 2)
    best = 1.0
    for offset in range(-len(two) + 1, len(one)):
        start, end = max(0, offset), min(len(one), offset + len(two))
        if end - start < need:
            continue
        part = slice(start - offset, end - offset)
        both = one_loud[start:end] & two_loud[part]
        count = int(both.sum())
        if count < need:
            continue
        wrong = int(np.bitwise_count((one[start:end] ^ two[part])[both]).sum())
        best = min(best, wrong / (32 * count))
    return best
