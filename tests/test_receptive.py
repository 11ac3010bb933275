"""Which layers a fused vector depends on, where the answer is known by hand."""

import pytest
import torch

from speechfuse.interfaces.concat_project import ConcatProject
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.single_layer import SingleLayer
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.receptive import receptive_field
from speechfuse.types import StackSpec


def spec(layers=5, dim=24):
    return StackSpec(layers, dim, 50.0)


def test_a_single_layer_is_one_column(stack):
    found = receptive_field(SingleLayer(spec(), tasks=["asr"], layer=3), stack(), "asr")
    assert found.tolist() == [[0, 0, 0, 1, 0]]


def test_a_weighted_sum_gives_its_weights(stack):
    part = WeightedSum(spec(), tasks=["asr"])
    part.logits.data = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    found = receptive_field(part, stack(), "asr")
    torch.testing.assert_close(found[0], part.logits.softmax(0).detach())


def test_hconv_reads_nothing_outside_of_its_windows(stack):
    """Of 13 layers 5 and then 2 remain: position 0 reads layers 0 to 8, position 1 layers 1 to 12.

    With kernel 5 and stride 3 a first position p reads layers 3p - 2 to 3p + 2; the second reads
    first positions 0 to 2 for position 0 and 1 to 4 for position 1.
    """
    torch.manual_seed(0)
    part = HConv(spec(13, 24), tasks=["asr"])
    found = receptive_field(part, stack(13), "asr")
    assert found.shape == (2, 13)
    assert [i for i, share in enumerate(found[0].tolist()) if share == 0.0] == [9, 10, 11, 12]
    assert [i for i, share in enumerate(found[1].tolist()) if share == 0.0] == [0]
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_shares_are_those_of_the_jacobian(stack):
    """A linear map has one Jacobian: the norm of its columns for each layer."""
    torch.manual_seed(0)
    part = ConcatProject(spec(3, 8), tasks=["asr"])
    linear = next(m for m in part.modules() if isinstance(m, torch.nn.Linear))
    norms = torch.stack([w.norm() for w in linear.weight.detach().split(8, dim=1)])
    found = receptive_field(part, stack(3, (600, 400), 8), "asr")
    torch.testing.assert_close(found[0], norms / norms.sum(), atol=5e-3, rtol=0)


def test_padding_counts_for_nothing(stack):
    part = HConv(spec(9), tasks=["asr"])
    one, other = (receptive_field(part, stack(9, garbage=g), "asr") for g in (1e3, -5.0))
    assert torch.equal(one, other)


def test_a_block_behind_dead_units_has_no_share(stack):
    part = HConv(spec(9), tasks=["asr"])
    part.convs[-1].bias.data.fill_(-1e9)
    found = receptive_field(part, stack(9), "asr")
    assert found.abs().sum() == 0


@pytest.mark.parametrize(("layers", "positions"), [(9, 1), (13, 2), (25, 3)])
def test_blocks_of_hconv_share_out_its_features(layers, positions):
    part = HConv(spec(layers), tasks=["asr"])
    assert len(part.blocks()) == part.positions == positions
    features = [i for block in part.blocks() for i in range(part.out_dim)[block]]
    assert sorted(features) == list(range(part.out_dim))
