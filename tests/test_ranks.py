import pytest
import torch

from speechfuse.errors import RecipeError
from speechfuse.ranks import Rank, check_devices


def test_a_batch_is_split_by_utterance_or_computed_by_all():
    parts = [list(range(5))[Rank(number, 2).part(5)] for number in range(2)]
    assert parts == [[0, 2, 4], [1, 3]]
    assert [list(range(1))[Rank(number, 2).part(1)] for number in range(2)] == [[0], [0]]
    assert [Rank(0, 2).parts(size) for size in (1, 2, 5)] == [1, 2, 2]
    assert list(range(5))[Rank().part(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("gpus", "count"), [(1, 2), (2, 3)])
def test_processes_do_not_share_a_gpu(monkeypatch, gpus, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(RecipeError, match=f"^{count} processes .* has {gpus};"):
        check_devices(count)
    check_devices(gpus)


def test_without_a_gpu_there_may_be_any_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_devices(3)
