import pytest
import torch

from speechfuse.interfaces.cls_pooling import ClsPooling
from speechfuse.types import StackSpec


def test_parameters_are_the_published_ones():
    """Shih & Harwath 2024, Table 1, HuBERT Base: 5.5 M, a torch encoder layer and CLS."""
    with torch.device("meta"):
        part = ClsPooling(StackSpec(13, 768, 50.0), tasks=["asr"])
    assert sum(p.numel() for p in part.parameters()) == 5_514_752


@pytest.mark.parametrize("layer_embedding", [False, True])
def test_is_the_encoder_layer_of_torch_at_cls(stack, layer_embedding):
    torch.manual_seed(0)
    given = stack(garbage=0.5)
    part = ClsPooling(given.spec, tasks=["asr"], layer_embedding=layer_embedding)
    for parameter in part.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    layers = given.stacked().permute(1, 2, 0, 3).flatten(0, 1)  # (B * T, L, D)
    if part.layer_embedding is not None:
        layers = layers + part.layer_embedding
    tokens = torch.cat([part.cls.expand(len(layers), 1, -1), layers], dim=1)
    # With gradients, in evaluation: torch's own path without them is another one.
    expected = part.eval().block(tokens)[:, 0].reshape(2, 7, 24)
    hidden = part(given, "asr").hidden
    torch.testing.assert_close(hidden, expected)
    target = torch.randn_like(hidden)
    ours = torch.autograd.grad((hidden * target).sum(), list(part.parameters()))
    theirs = torch.autograd.grad((expected * target).sum(), list(part.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_heads_divide_the_width(caplog):
    for dim, heads in [(768, 8), (510, 6), (33, 3), (7, 7)]:
        caplog.clear()
        part = ClsPooling(StackSpec(3, dim, 50.0), tasks=["asr"], feed_forward=4)
        assert part.block.self_attn.num_heads == heads
        reduced = f"heads reduced from 8 to {heads}, which divides a width of {dim}"
        assert (reduced in caplog.text) == bool(caplog.text) == (heads < 8)
