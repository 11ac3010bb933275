import pytest
import torch

from speechfuse.bench.step import bench_step, plainly, step_table
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.weighted_sum import WeightedSum


@pytest.mark.parametrize("kind", [WeightedSum, HConv])
def test_the_reference_is_the_same_method(stack, kind):
    inputs = stack(layers=13, dim=24, garbage=1.0)
    interface = kind(inputs.spec, tasks=["a"])
    expected = interface(inputs, "a").hidden
    torch.testing.assert_close(plainly(inputs, interface).hidden, expected, atol=1e-4, rtol=1e-4)


def test_a_stack_costs_a_copy_of_the_batch_and_a_step_less():
    rows = list(bench_step(600, [(5, 8)]))
    assert [row.interface for row in rows] == ["weighted sum", "HConv"]
    for row in rows:
        assert row.batch == 4 * 5 * 8 * 600
        assert row.reference >= row.batch + row.ours / 2
        assert 0 < row.ours < row.reference


def test_ratios_are_those_of_the_bytes():
    (row, _) = bench_step(600, [(5, 8)])
    _, columns, cells = step_table(12.0, [(5, 8)])
    assert {len(cell) for cell in cells} == {len(columns)}
    assert cells[0][-2] == f"{row.reference / row.ours:.1f}"
    assert cells[0][-1] == f"{(row.batch + row.reference) / (row.batch + row.ours):.2f}"
