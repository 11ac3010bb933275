"""Interfaces that take layers one by one give what they give for the whole stack."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechfuse import build
from speechfuse.build import read_recipe
from speechfuse.errors import ShapeError
from speechfuse.interfaces.hconv import HConv
from speechfuse.types import LayerStack

KINDS = {
    "single_layer": {"layer": 1},
    "weighted_sum": {},
    "hconv": {"kernel_size": 5, "stride": 3},
}


def fusion_of(kind, stacks, **changes):
    interface = {"kind": kind, **KINDS.get(kind, {})}
    recipe = read_recipe(
        {
            "upstreams": {
                f"u{i}": {"kind": "filterbank", "num_mels": 8 + i} for i in range(len(stacks))
            },
            "fusion": {"interface": interface, **changes},
            "tasks": {"asr": {"corpus": "x", "head": {"kind": "ctc"}}},
        }
    )
    torch.manual_seed(0)
    return build.build_fusion(recipe, [s.spec for s in stacks], ["asr"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("layers", [2, 13, 25])
def test_layers_one_by_one_give_the_same_frames(kind, normalize, layers, stack):
    whole = stack(layers=layers, dim=24, garbage=1.0)
    fusion = fusion_of(kind, [whole], normalize=normalize)
    stream = fusion.stream("asr")
    order = list(range(layers))
    random.Random(layers).shuffle(order)
    for index in order:
        stream.accumulate(index, whole.layers[index])
    found = stream.result(whole.lengths, whole.frame_rate)
    with torch.no_grad():
        wanted = fusion([whole], "asr")
    torch.testing.assert_close(found.hidden, wanted.hidden, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.lengths, wanted.lengths)
    assert not found.hidden.requires_grad


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 49),
    dim=st.integers(1, 20),
    kernel=st.integers(1, 4).map(lambda n: 2 * n + 1),
    stride=st.integers(2, 4),
)
def test_hconv_streams_for_every_shape(layers, dim, kernel, stride):
    generator = torch.Generator().manual_seed(layers)
    hidden = [torch.randn(2, 3, dim, generator=generator) for _ in range(layers)]
    whole = LayerStack(tuple(hidden), torch.tensor([3, 2]), 50.0)
    hconv = HConv(whole.spec, tasks=["asr"], kernel_size=max(kernel, stride), stride=stride)
    stream = hconv.stream("asr")
    for index, layer in enumerate(hidden):
        stream.accumulate(index, layer)
    with torch.no_grad():
        wanted = hconv(whole, "asr").hidden
    found = stream.result(whole.lengths, 50.0).hidden
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_every_layer_comes_once(stack):
    whole = stack(layers=3)
    stream = fusion_of("weighted_sum", [whole]).stream("asr")
    stream.accumulate(1, whole.layers[1])
    with pytest.raises(ShapeError, match=r"layer 1 is not awaited, but \[0, 2\]"):
        stream.accumulate(1, whole.layers[1])
    with pytest.raises(ShapeError, match=r"layers \[0, 2\] have not come"):
        stream.result(whole.lengths, whole.frame_rate)


def test_what_cannot_be_streamed_says_so(stack):
    with pytest.raises(ShapeError, match="ClsPooling reads all layers of a frame together"):
        fusion_of("cls_pooling", [stack()]).stream("asr")
    with pytest.raises(ShapeError, match="of several encoders"):
        fusion_of("weighted_sum", [stack(), stack()]).stream("asr")
