import pytest
import torch

from speechfuse.layer_linear import layer_linear
from speechfuse.measure import peak_bytes


def joined(parts, linear):
    return linear(torch.cat(parts, dim=-1))


def test_it_reads_parts_of_any_width_in_order():
    torch.manual_seed(0)
    parts = [torch.randn(2, 4, width, requires_grad=width != 1) for width in (3, 1, 5)]
    linear = torch.nn.Linear(9, 2)
    asked = [linear.weight, linear.bias, parts[0], parts[2]]
    results = []
    for layer in (layer_linear, joined):
        hidden = layer(parts, linear)
        results.append([hidden.detach(), *torch.autograd.grad(hidden.square().sum(), asked)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("mixed", [False, True])
def test_it_copies_no_layers_and_keeps_none(mixed):
    """Forward and with the gradient, which is small here: layers are 13, a stack would be as many,
    and half as many in bfloat16."""
    layers = [torch.randn(1, 4000, 64) for _ in range(13)]
    linear = torch.nn.Linear(13 * 64, 64)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            hidden = layer_linear(layers, linear)
        hidden.float().sum().backward()

    assert peak_bytes(step) < 3.5 * layers[0].nbytes


def test_mixed_precision_rounds_products_and_not_their_sum():
    """What bfloat16 holds exactly, in 300 products of one: its own sum would stop at 256."""
    layers = [torch.ones(1, 2, 1) for _ in range(300)]
    linear = torch.nn.Linear(300, 1)
    torch.nn.init.ones_(linear.weight), torch.nn.init.zeros_(linear.bias)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = layer_linear(layers, linear)
    assert hidden.dtype == torch.bfloat16
    assert hidden.flatten().tolist() == [300.0, 300.0]


def test_gradients_in_mixed_precision_are_those_of_rounded_factors():
    torch.manual_seed(0)
    parts = [torch.randn(2, 4, 8).bfloat16().float().requires_grad_() for _ in range(3)]
    linear = torch.nn.Linear(24, 4)
    for parameter in linear.parameters():
        parameter.data = parameter.data.bfloat16().float()
    scale, found = torch.randn(2, 4, 4).bfloat16().float(), []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            hidden = layer_linear(parts, linear)
        asked = [linear.weight, linear.bias, *parts]
        found.append(torch.autograd.grad((hidden.float() * scale).sum(), asked))
    assert all(grad.dtype == torch.float32 for grad in found[1])
    torch.testing.assert_close(*found, atol=1e-6, rtol=2**-7)
