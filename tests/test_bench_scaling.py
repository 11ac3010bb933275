import pytest

from speechfuse.bench import scaling as bench
from speechfuse.bench.scaling import Size, bends, exponent, spread

TINY = bench.NARROW | {"hidden_size": 16, "intermediate_size": 8, "conv_dim": [8] * 7}


def test_exponents_are_those_of_power_laws():
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert exponent([1, 2], [5.0, 5.0]) == pytest.approx(0)


def test_a_fixed_cost_bends_and_a_proportional_one_does_not():
    assert bends([1, 2, 4], [1.0, 2.0, 4.0]) == []
    assert bends([1, 2, 4, 8], [1.0, 1.0, 2.0, 4.0]) == [2]
    assert bends([1, 2], [1.0, 9.0]) == []


def test_layers_are_spread_up_to_the_last():
    assert spread(1) == [24]
    assert spread(13) == list(range(0, 25, 2))
    assert spread(25) == list(range(25))


@pytest.mark.recipe
def test_every_size_is_extracted_and_trained_on(monkeypatch):
    axes = {
        "encoders": [Size(layers=1, share=1.0), Size(2, 1, 1.0)],
        "share": [Size(layers=1), Size(layers=1, share=1.0)],
    }
    asked = []
    seconds = bench._seconds

    def watched(place, size, clock):
        asked.append(size)
        return seconds(place, size, clock)

    monkeypatch.setattr(bench, "_seconds", watched)
    found = list(bench.bench_scaling(70 / 3600, 1, config=TINY, axes=axes))
    assert asked[1:] == [size for sizes in axes.values() for size in sizes]
    assert [one.values for one in found] == [[1, 2], [0.5, 1.0]]
    assert all(min(*one.extraction, *one.epoch) > 0 for one in found)
    monkeypatch.setattr(bench, "bench_scaling", lambda *_: iter(found))
    _, columns, rows = bench.scaling_table(1.0, 1, config=TINY)
    assert [row[0] for row in rows] == ["encoders 1, 2", "hours 0.5, 1"]
    assert {len(row) for row in rows} == {len(columns)}
