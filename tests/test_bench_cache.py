import pytest
import torch

from speechfuse.bench.cache import (
    _Case,
    bench_cache,
    bench_layouts,
    cache_tables,
    hconv_together,
    summed_together,
)
from speechfuse.bench.speech import natural_durations
from speechfuse.cache.shards import DTYPES
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.weighted_sum import WeightedSum

SHAPES = ((5, 8),)


def test_every_type_is_written_and_read_in_every_manner():
    rows = list(bench_cache(6.0, 1, SHAPES))
    assert [row.dtype for row in rows] == [dtype for dtype in DTYPES for _ in range(5)]
    assert [row.what for row in rows[:5]] == [
        "write",
        "read utterances",
        "read batches",
        "2 layers, batches",
        "half of the frames, batches",
    ]
    assert all(row.share == pytest.approx(row.ceiling / row.seconds) for row in rows)


def test_bytes_are_those_that_a_manner_reads():
    frames = sum(int(50 * duration) for duration in natural_durations(6.0))
    write, whole, batches, subset, spans = (
        row.size for row in bench_cache(6.0, 1, SHAPES) if row.dtype == "float16"
    )
    assert write == whole == batches == 2 * 5 * 8 * frames
    assert subset == 2 * 2 * 8 * frames
    assert abs(spans - whole / 2) <= 2 * 5 * 8 * len(natural_durations(6.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_copies_are_what_the_store_reads(tmp_path, dtype):
    case = _Case(tmp_path, 5, 8, dtype, 6.0)
    values = case._values(case.store.layers, {})
    for utterance, kept in zip(case.utterances, values, strict=True):
        read = case.store.read(utterance)
        assert read.shape == kept.shape
        if dtype != "int8":
            assert read.equal(kept.float())


def test_both_layouts_give_the_same_and_are_timed(stack):
    inputs = stack(layers=13, dim=24, lengths=(9,))
    together = inputs.stacked()[:, 0].transpose(0, 1).contiguous()
    hconv, total = (kind(inputs.spec, tasks=["a"]) for kind in (HConv, WeightedSum))
    expected = total(inputs, "a").hidden[0]
    torch.testing.assert_close(summed_together(together, total.logits), expected)
    expected = hconv(inputs, "a").hidden[0]
    torch.testing.assert_close(hconv_together(together, hconv), expected, atol=1e-4, rtol=1e-4)
    rows = list(bench_layouts(1.0, 1, SHAPES))
    assert len({row.what for row in rows}) == len(rows) == 5
    assert all(row.ratio == pytest.approx(row.together / row.apart) for row in rows)


def test_tables_have_a_row_for_everything(monkeypatch):
    monkeypatch.setattr("speechfuse.bench.cache.SHAPES", SHAPES)
    cache, layout = cache_tables(3.0, 1)
    assert {len(row) for row in cache[2]} == {len(cache[1])}
    assert {len(row) for row in layout[2]} == {len(layout[1])}
    assert "of the ceiling" in cache[1]


def test_durations_are_natural():
    found = natural_durations(600.0)
    assert sum(found) >= 600.0 > sum(found[:-1])
    assert 1.0 <= min(found) < 3.0
    assert 10.0 < max(found) <= 15.0
