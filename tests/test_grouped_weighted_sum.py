import math

import pytest
import torch

from speechfuse.interfaces.grouped_weighted_sum import GroupedWeightedSum
from speechfuse.types import LayerStack, StackSpec


# Shih & Harwath 2024, Table 1, HuBERT Base: 1.2, 1.8 and 2.4 M.
@pytest.mark.parametrize(("groups", "published"), [(2, 1.2e6), (3, 1.8e6), (4, 2.4e6)])
def test_parameters_are_the_published_ones(groups, published):
    with torch.device("meta"):
        part = GroupedWeightedSum(StackSpec(13, 768, 50.0), tasks=["asr"], groups=groups)
    count = sum(p.numel() for p in part.parameters())
    assert count == 13 + groups * 768 * 768 + 768
    assert round(count, -5) == published


def test_equals_a_loop_over_python_floats():
    torch.manual_seed(0)
    part = GroupedWeightedSum(StackSpec(5, 2, 50.0), tasks=["asr"], groups=2)
    part.logits.data = torch.randn(5)
    layers = torch.randn(5, 1, 1, 2)
    columns = layers[:, 0, 0].tolist()
    joined = []
    for group in ([0, 1, 2], [3, 4]):
        powers = [math.exp(part.logits[index].item()) for index in group]
        joined += [
            sum(p / sum(powers) * columns[i][d] for p, i in zip(powers, group, strict=True))
            for d in range(2)
        ]
    expected = [
        bias + sum(w * x for w, x in zip(row, joined, strict=True))
        for row, bias in zip(part.project.weight.tolist(), part.project.bias.tolist(), strict=True)
    ]
    found = part(LayerStack(tuple(layers), torch.tensor([1]), 50.0), "asr").hidden[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_groups_are_near_equal_and_one_has_layers_to_choose_from(caplog):
    for layers, sizes in [(1, [1]), (2, [2]), (3, [2, 1]), (5, [2, 1, 1, 1]), (9, [3, 2, 2, 2])]:
        caplog.clear()
        part = GroupedWeightedSum(StackSpec(layers, 8, 50.0), tasks=["asr"], groups=4, out_dim=6)
        assert part.sizes == sizes
        reduced = f"groups reduced from 4 to {len(sizes)}, the stack has {layers} layers"
        assert (reduced in caplog.text) == bool(caplog.text) == (len(sizes) < 4)
        assert part.out_dim == 6
