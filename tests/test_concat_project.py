import torch

from speechfuse.interfaces.concat_project import ConcatProject
from speechfuse.types import StackSpec


def test_parameters_are_the_published_ones():
    """Shih & Harwath 2024, Table 1, HuBERT Base: 7.7 M."""
    with torch.device("meta"):
        part = ConcatProject(StackSpec(13, 768, 50.0), tasks=["asr"])
    count = sum(p.numel() for p in part.parameters())
    assert count == 13 * 768 * 768 + 768
    assert round(count, -5) == 7.7e6


def test_is_the_linear_layer_over_the_concatenation(stack):
    torch.manual_seed(0)
    part, given = ConcatProject(StackSpec(5, 24, 50.0), tasks=["asr"], out_dim=10), stack()
    expected = part.project(torch.cat(given.layers, dim=-1))
    found = part(given, "asr").hidden
    torch.testing.assert_close(found[0], expected[0])
    assert part.out_dim == 10
