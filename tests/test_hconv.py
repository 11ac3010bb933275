import math

import pytest
import torch
from torch import nn

from speechfuse.interfaces.hconv import HConv, layer_path
from speechfuse.layer_conv import layer_conv, stacked_conv, windows
from speechfuse.measure import peak_bytes
from speechfuse.plan import count_products
from speechfuse.types import LayerStack, StackSpec


def parameters(layers, dim, compat="floor"):
    with torch.device("meta"):
        part = HConv(StackSpec(layers, dim, 50.0), tasks=["asr"], compat=compat)
    return part, sum(p.numel() for p in part.parameters())


# Published counts: 13 x 768 in Shih & Harwath 2024, Table 1; the others follow its code.
@pytest.mark.parametrize(
    ("layers", "dim", "path", "out_dim", "count"),
    [
        (13, 768, [13, 5, 2], 768, 4_424_832),
        (25, 1024, [25, 9, 3], 1023, 6_990_165),
        (33, 1280, [33, 11, 4, 2], 1280, 20_483_200),
        (49, 1280, [49, 17, 6, 2], 1280, 20_483_200),
        (7, 512, [7, 3], 510, 435_370),
        (5, 384, [5, 2], 384, 368_832),
        (13, 1536, [13, 5, 2], 1536, 17_697_024),
    ],
)
def test_layer_path_and_parameters_are_the_published_ones(layers, dim, path, out_dim, count):
    assert layer_path(layers) == path
    part, found = parameters(layers, dim)
    assert found == count
    assert part.out_dim == out_dim


def test_the_default_keeps_the_width_for_every_encoder():
    for layers, dim in [(25, 1024), (7, 512), (1, 80), (2, 33), (243, 10)]:
        part, _ = parameters(layers, dim, "ceil")
        assert part.out_dim == dim


def test_depth_is_counted_in_integers():
    assert math.log(243) / math.log(3) < 5  # what floating point makes of it
    assert len(layer_path(243)) == 1 + 5


def test_a_large_stack_works(stack):
    part = HConv(StackSpec(25, 1024, 50.0), tasks=["asr"])
    out = part(stack(layers=25, dim=1024, lengths=(3, 2), garbage=0.0), "asr")
    assert out.hidden.shape == (2, 3, 1024)


class Published(nn.Module):
    """The public code: a Sequential named `transforms` over (B * T, D, L), then flattened."""

    def __init__(self, layers, dim):
        super().__init__()
        path = layer_path(layers)
        self.transforms = nn.Sequential()
        for left in path[1:]:
            last = left == path[-1]
            self.transforms.append(nn.Conv1d(dim, dim // left if last else dim, 5, 3, 2))
            self.transforms.append(nn.ReLU())

    def forward(self, stacked):
        layers, batch, frames, dim = stacked.shape
        hidden = stacked.permute(1, 2, 3, 0).reshape(-1, dim, layers)
        return self.transforms(hidden).reshape(batch, frames, -1)


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 13, 25, 33])
@pytest.mark.parametrize("prefix", ["", "interface."])
def test_a_published_state_loads_under_its_own_names_and_gives_the_same(stack, layers, prefix):
    public = Published(layers, dim=12)
    state = {prefix + name: value for name, value in public.state_dict().items()}
    assert list(state)[:2] == [f"{prefix}transforms.0.weight", f"{prefix}transforms.0.bias"]
    part = HConv(StackSpec(layers, 12, 50.0), tasks=["asr"], compat="floor")
    loader = nn.ModuleDict({"interface": part}) if prefix else part
    loader.load_state_dict(state)
    given = stack(layers=layers, dim=12, garbage=0.5)
    torch.testing.assert_close(part(given, "asr").hidden, public(given.stacked()))


def test_a_published_state_of_the_size_that_was_published_loads():
    """13 x 768 has two convolutions; the state dict names them 0 and 2."""
    with torch.device("meta"):
        state = Published(13, 768).state_dict()
        part = HConv(StackSpec(13, 768, 50.0), tasks=["asr"])
    names = ["transforms.0.weight", "transforms.0.bias", "transforms.2.weight", "transforms.2.bias"]
    assert list(state) == names
    assert not any(part.load_state_dict(state, assign=True))
    assert {tuple(p.shape) for p in part.parameters()} == {tuple(v.shape) for v in state.values()}


def test_a_published_state_of_another_depth_is_refused():
    part = HConv(StackSpec(2, 12, 50.0), tasks=["asr"])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*convs\.1\.weight"):
        part.load_state_dict(Published(13, 12).state_dict())


def loop(part, columns):
    """Layers as lists of floats through every convolution, then side by side as the code joins
    them: index = channel * layers left + layer."""
    for conv in part.convs:
        weight, bias = conv.weight.tolist(), conv.bias.tolist()
        made = []
        for position in range((len(columns) + 4 - 5) // 3 + 1):
            made.append([])
            for channel, total in enumerate(bias):
                for tap in range(5):
                    index = 3 * position + tap - 2
                    if 0 <= index < len(columns):
                        row = weight[channel]
                        total += sum(row[d][tap] * value for d, value in enumerate(columns[index]))
                made[-1].append(max(0.0, total))
        columns = made
    return [column[channel] for channel in range(len(columns[0])) for column in columns]


@pytest.mark.parametrize(
    ("layers", "dim", "compat", "path", "out_dim"),
    [
        (4, 2, "ceil", [4, 2], 2),
        (7, 4, "ceil", [7, 3], 4),  # 3 layers of 2, cut to 4
        (7, 4, "floor", [7, 3], 3),  # 3 layers of 1
        (9, 3, "ceil", [9, 3, 1], 3),
        (10, 3, "ceil", [10, 4, 2], 3),  # two levels, 2 layers of 2, cut to 3
        (10, 3, "floor", [10, 4, 2], 2),
        (13, 5, "floor", [13, 5, 2], 4),
    ],
)
def test_equals_a_loop_over_python_floats(layers, dim, compat, path, out_dim):
    torch.manual_seed(3)
    part = HConv(StackSpec(layers, dim, 50.0), tasks=["asr"], compat=compat)
    for parameter in part.parameters():
        nn.init.normal_(parameter, mean=0.2)  # so that not all is rectified away
    hidden = torch.randn(layers, 1, 3, dim)
    found = part(LayerStack(tuple(hidden), torch.tensor([3]), 50.0), "asr").hidden[0]
    assert layer_path(layers) == path
    for frame in range(3):
        wanted = loop(part, hidden[:, 0, frame].tolist())[:out_dim]
        assert len(wanted) == out_dim
        torch.testing.assert_close(found[frame], torch.tensor(wanted))
    assert found.gt(0).any()
    assert found.eq(0).any()


def one_by_one(layers, weight, bias, stride):
    return torch.stack(layer_conv(layers, weight, bias, stride), dim=-1)


def side_by_side(layers, weight, bias, stride):
    return stacked_conv(torch.stack(layers, dim=1), weight, bias, stride).transpose(1, 2)


@pytest.mark.parametrize("convolve", [one_by_one, side_by_side])
@pytest.mark.parametrize("layers", [1, 2, 5, 13, 25])
def test_gradients_are_those_of_convolutions(layers, convolve):
    torch.manual_seed(0)
    inputs = [
        torch.randn(6, 8, dtype=torch.double, requires_grad=i % 2 == 0) for i in range(layers)
    ]
    conv = torch.nn.Conv1d(8, 4, 5, 3, 2).double()
    wanted = torch.relu(conv(torch.stack(inputs, dim=-1)))  # (N, D', outputs)
    scale = torch.randn_like(wanted)
    found = convolve(inputs, conv.weight, conv.bias, 3)
    torch.testing.assert_close(found, wanted)
    asked = [conv.weight, conv.bias, *inputs[::2]]
    expected = torch.autograd.grad((wanted * scale).sum(), asked, allow_unused=True)
    grads = torch.autograd.grad((found * scale).sum(), asked, allow_unused=True)
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if other is None else other)


@pytest.mark.parametrize("convolve", [one_by_one, side_by_side])
@pytest.mark.parametrize("layers", [2, 5, 13])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_of_frozen_layers_are_not_computed(layers, convolve, frozen):
    """Counted, since a gradient that is computed and thrown away cannot be seen."""
    inputs = [torch.randn(6, 8, requires_grad=not frozen) for _ in range(layers)]
    conv = torch.nn.Conv1d(8, 4, 5, 3, 2)
    each = 6 * 8 * 4 * sum(map(len, windows(layers, 5, 3)))  # multiply-adds of one pass

    def step():
        with torch.enable_grad():
            convolve(inputs, conv.weight, conv.bias, 3).sum().backward()

    assert count_products(step) == (2 if frozen else 3) * each  # forward, taps, layers


def test_a_training_step_of_frozen_layers_multiplies_no_more_than_it_needs(stack):
    inputs = stack(layers=13, dim=8, lengths=(3,))
    hconv = HConv(inputs.spec, tasks=["asr"])

    def step():
        with torch.enable_grad():
            hconv(inputs, "asr").hidden.sum().backward()

    first, second = (3 * 8 * out * taps for out, taps in [(8, 3 + 3 * 5 + 3), (4, 3 + 4)])
    assert count_products(step) == 2 * first + 3 * second
    assert all(p.grad is not None for p in hconv.parameters())


def test_autocast_multiplies_in_low_precision_and_keeps_full_gradients(stack):
    inputs = stack(layers=5, dim=8, garbage=0.0)
    hconv = HConv(inputs.spec, tasks=["asr"])
    with torch.autocast("cpu", torch.bfloat16):
        low = hconv(inputs, "asr").hidden
    low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in hconv.parameters())
    torch.testing.assert_close(low.float(), hconv(inputs, "asr").hidden, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("mixed", "learned", "outputs"),
    [
        (False, False, 6),  # 5 of the first convolution and 2 half as wide of the second
        (False, True, 13),  # the same, joined, their gradients and one that passed the ReLU
        (True, False, 5),  # half as large, and a window of 5 layers
        (True, True, 7),
    ],
)
def test_hconv_needs_memory_for_what_its_convolutions_put_out(mixed, learned, outputs):
    """In float32 outputs, beside weights that are small here; a stack would be 13 of them more,
    6.5 in bfloat16."""
    layers = tuple(torch.randn(13, 1, 2000, 32))
    stack = LayerStack(layers, torch.tensor([2000]), 50.0)
    hconv = HConv(stack.spec, tasks=["asr"])

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.set_grad_enabled(learned):
            hidden = hconv(stack, "asr").hidden
        if learned:
            hidden.float().sum().backward()

    assert peak_bytes(step) < (outputs + 0.5) * layers[0].nbytes


@pytest.mark.parametrize("convolve", [one_by_one, side_by_side])
@pytest.mark.parametrize("needs", [False, True])
def test_gradients_in_mixed_precision_are_those_of_rounded_factors(convolve, needs):
    """Given what bfloat16 holds exactly, all that is lost is the rounding of single products."""
    torch.manual_seed(0)
    layers = [torch.randn(6, 8).bfloat16().float().requires_grad_(needs) for _ in range(13)]
    conv = torch.nn.Conv1d(8, 4, 5, 3, 2)
    for parameter in conv.parameters():
        parameter.data = parameter.data.bfloat16().float()
    scale = torch.randn(6, 4, 5).bfloat16().float()
    asked = [*conv.parameters(), *layers] if needs else [*conv.parameters()]
    grads = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = convolve(layers, conv.weight, conv.bias, 3)
        grads.append(torch.autograd.grad((found.float() * scale).sum(), asked))
    assert all(grad.dtype == torch.float32 for grad in grads[1])
    torch.testing.assert_close(*grads, atol=0.1, rtol=2**-6)


@pytest.mark.parametrize("convolve", [one_by_one, side_by_side])
def test_bfloat16_rounds_once_for_each_output(convolve):
    """Inputs that bfloat16 holds exactly: all that is lost is the rounding of the sum."""
    torch.manual_seed(0)
    exact = [torch.randn(6, 64).bfloat16().float() for _ in range(5)]
    weight, bias = (torch.randn(*shape).bfloat16().float() for shape in ((8, 64, 5), (8,)))
    expected = one_by_one(exact, weight, bias, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve(exact, weight, bias, 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=2**-8)


@pytest.mark.parametrize("convolve", [one_by_one, side_by_side])
def test_bfloat16_gradients_of_taps_round_once(convolve):
    """A tap is used by many outputs: their gradients add up in single precision."""
    torch.manual_seed(0)
    layers = [torch.ones(1, 1).bfloat16() for _ in range(601)]
    weight, bias = torch.ones(1, 1, 1).bfloat16(), torch.zeros(1).bfloat16()
    weight.requires_grad_(), bias.requires_grad_()
    outputs = convolve(layers, weight, bias, 2)
    outputs.sum().backward()
    assert outputs.shape[-1] == 301  # in bfloat16 a sum of ones stops at 256
    assert weight.grad.item() == bias.grad.item() == torch.tensor(301.0).bfloat16().item()
