import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speechfuse.upstreams import convolutions
from speechfuse.upstreams.convolutions import activate, convolve, grouped, lay_out


class Layer(nn.Module):
    """As transformers has it."""

    def __init__(self, channels, width, kernel, stride, norm=None, bias=False):
        super().__init__()
        self.conv = nn.Conv1d(channels, width, kernel, stride, bias=bias)
        if norm is not None:
            self.layer_norm = norm
        self.activation = nn.GELU()

    def forward(self, hidden):
        hidden = self.conv(hidden)
        norm = getattr(self, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            hidden = norm(hidden)
        elif norm is not None:
            hidden = norm(hidden.transpose(1, 2)).transpose(1, 2)
        return self.activation(hidden)


@pytest.mark.parametrize("kind", ["group", "layer", "none"])
@pytest.mark.parametrize("piece", [8, 4096])
def test_products_are_the_convolutions(kind, piece, monkeypatch):
    monkeypatch.setattr(convolutions, "PIECE", piece)
    torch.manual_seed(0)
    shapes = [(1, 6, 10, 5), (6, 6, 3, 2), (6, 6, 3, 2), (6, 6, 2, 2)]
    layers = []
    for index, shape in enumerate(shapes):
        norm = nn.LayerNorm(6) if kind == "layer" else None
        if kind == "group" and index == 0:
            norm = nn.GroupNorm(6, 6)
        if norm is not None:
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
        layers.append(Layer(*shape, norm, bias=kind == "layer"))
    sizes = (700, 431, 150)
    samples = torch.zeros(3, 700)
    for row, size in enumerate(sizes):
        samples[row, :size] = torch.randn(size) + 0.5
    with torch.no_grad():
        alone = []
        for row, size in enumerate(sizes):
            hidden = samples[row : row + 1, None, :size]
            for layer in layers:
                hidden = layer(hidden)
            alone.append(hidden[0].t())
        for layer in layers:
            lay_out(layer.conv, torch.float32)
        together = convolve(layers, samples, torch.tensor(sizes))
        for row, (expected, size) in enumerate(zip(alone, sizes, strict=True)):
            torch.testing.assert_close(together[row, : len(expected)], expected)
            one = convolve(layers, samples[row : row + 1, :size], torch.tensor([size]))
            torch.testing.assert_close(one[0], expected)


def test_a_constant_clip_has_no_variance():
    """What is left of it is the norm's bias, as of transformers' norm."""
    layers = [Layer(1, 4, 10, 5, nn.GroupNorm(4, 4)), Layer(4, 4, 3, 2)]
    samples = torch.full((1, 400), 0.25)
    with torch.no_grad():
        hidden = convolve(layers, samples, torch.tensor([400]))
        expected = layers[1](layers[0](samples[:, None]))
    torch.testing.assert_close(hidden.transpose(1, 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", [16, 5])
def test_groups_one_by_one_are_the_convolution(kernel):
    conv = nn.Conv1d(12, 12, kernel, padding=kernel // 2, groups=3)
    hidden = torch.randn(1, 20, 12)
    with torch.no_grad():
        expected = conv(hidden.transpose(1, 2))[..., :20].transpose(1, 2)
        lay_out(conv, torch.float32)
        torch.testing.assert_close(grouped(conv, hidden), expected)
        torch.testing.assert_close(grouped(conv, hidden.repeat(2, 1, 1))[1:], expected)


def test_groups_in_bfloat16_keep_their_bias_whole():
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(8, 8, 5, padding=2, groups=2)
    hidden = torch.randn(1, 9, 8)
    expected = conv(hidden.transpose(1, 2)).transpose(1, 2)
    lay_out(conv, torch.bfloat16)
    with torch.no_grad():
        for count in (1, 2):  # several are as on a GPU
            found = grouped(conv, hidden.repeat(count, 1, 1))[:1]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)


def test_an_activation_is_what_it_is():
    from transformers.activations import ACT2FN

    values = torch.linspace(-3, 3, 7)
    for name in ("gelu", "gelu_new", "relu"):
        torch.testing.assert_close(activate(ACT2FN[name], values.clone()), ACT2FN[name](values))
    in_place = values.clone()
    assert activate(ACT2FN["gelu"], in_place) is in_place
    torch.testing.assert_close(in_place, F.gelu(values))
