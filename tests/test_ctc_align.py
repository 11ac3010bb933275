import itertools
import math

import pytest
import torch

from speechfuse.heads.ctc_align import align


def collapsed(path):
    return [token for token, _ in itertools.groupby(path) if token]


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2]])
@pytest.mark.parametrize("frames", [3, 5])
def test_the_path_is_the_best_of_all_that_spell_the_tokens(ids, frames):
    generator = torch.Generator().manual_seed(frames + len(ids))
    log_probs = torch.randn(frames, 3, generator=generator).log_softmax(-1)
    paths = [p for p in itertools.product(range(3), repeat=frames) if collapsed(p) == ids]
    found = align(log_probs, ids)
    if not paths:
        assert found is None
        return
    best = max(paths, key=lambda path: sum(float(log_probs[t, c]) for t, c in enumerate(path)))
    runs, frame = [], 0
    for token, group in itertools.groupby(best):
        size = len(list(group))
        if token:
            score = sum(math.exp(log_probs[t, token]) for t in range(frame, frame + size)) / size
            runs.append((frame, frame + size, pytest.approx(score)))
        frame += size
    assert [tuple(stand) for stand in found] == runs


def test_no_tokens_stand_nowhere_and_too_many_do_not_fit():
    log_probs = torch.zeros(3, 4).log_softmax(-1)
    assert align(log_probs, []) == []
    assert align(log_probs, [1, 2, 3, 1]) is None
    assert align(log_probs, [1, 1, 1]) is None
