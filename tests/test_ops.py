import pytest
import torch

from speechfuse.errors import RecipeError
from speechfuse.measure import peak_bytes
from speechfuse.ops import (
    as_rows,
    length_mask,
    masked_mean,
    masked_std,
    mix,
    normalise,
    zero_padding,
)


def test_length_mask_is_true_where_a_position_is_valid():
    assert length_mask(torch.tensor([2, 0]), 3).tolist() == [[True, True, False], [False] * 3]


def test_masked_mean_and_std_equal_those_of_the_valid_frames_alone():
    hidden = torch.randn(2, 6, 3)
    hidden[1, 4:] = torch.nan  # padding may hold anything
    lengths = torch.tensor([6, 4])
    mean = masked_mean(hidden, lengths)
    torch.testing.assert_close(mean[1], hidden[1, :4].mean(0))
    clean = hidden.nan_to_num(0)
    std = masked_std(clean, lengths)
    expected = (clean[1, :4].var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(std[1], expected)


def test_zero_padding_leaves_valid_frames():
    hidden = torch.ones(2, 3, 2)
    out = zero_padding(hidden, torch.tensor([3, 1]))
    assert out[0].sum() == 6
    assert out[1].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_normalise_gives_unit_scale():
    hidden = 5 + 3 * torch.randn(2, 4, 64)
    normed = normalise(hidden, "layer_norm")
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    rms = normalise(hidden, "unit_rms").square().mean(-1)
    torch.testing.assert_close(rms, torch.ones(2, 4), atol=1e-4, rtol=0)
    assert normalise(hidden, "none") is hidden
    with pytest.raises(RecipeError, match="Did you mean 'layer_norm'"):
        normalise(hidden, "layernorm")


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4, 1)])
def test_mix_is_the_sum_of_weights_times_layers(shape):
    weights, layers = torch.randn(shape, dtype=torch.double), torch.randn(3, 2, 4, 5).double()
    by_hand = torch.stack([w * layer for w, layer in zip(weights, layers, strict=True)]).sum(0)
    torch.testing.assert_close(mix(weights, tuple(layers)), by_hand)
    inputs = [weights.requires_grad_(), *(layer.clone().requires_grad_() for layer in layers)]
    assert torch.autograd.gradcheck(lambda w, *given: mix(w, given), inputs)


def layers_of(stacked, together):
    return list(stacked) if together else [layer.clone() for layer in stacked]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_mix_needs_memory_for_its_output_alone(together, mixed, learned):
    """In mixed precision too, forward and with the gradient; the layers are 13 outputs."""
    layers = layers_of(torch.randn(13, 2, 40, 100), together)
    weights = torch.rand(13, requires_grad=learned)
    grad = torch.randn(2, 40, 100)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            total = mix(weights, layers)
        if learned:
            total.backward(grad)

    assert peak_bytes(step) < 1.05 * layers[0].nbytes


@pytest.mark.parametrize("together", [True, False])
def test_a_mix_is_as_exact_in_mixed_precision(together):
    layers = layers_of(torch.randn(4, 2, 3, 5), together)
    weights, grad = torch.rand(4, requires_grad=True), torch.randn(2, 3, 5)
    found = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            total = mix(weights, layers)
        total.backward(grad)
        found.append((total.detach(), weights.grad))
        weights.grad = None
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("together", [True, False])
def test_a_mix_computes_no_gradient_of_frozen_layers(together):
    layers = layers_of(torch.randn(4, 2, 30, 50), together)
    weights = torch.rand(4, requires_grad=True)
    mixed, grad = mix(weights, layers), torch.randn(2, 30, 50)
    assert peak_bytes(lambda: mixed.backward(grad)) < layers[0].nbytes
    for layer in layers:
        layer.requires_grad_()
    mixed = mix(weights, layers)
    assert peak_bytes(lambda: mixed.backward(grad)) >= 4 * layers[0].nbytes


@pytest.mark.parametrize("together", [True, False])
def test_a_mix_is_the_same_wherever_its_layers_lie(together):
    """Layers of one tensor are mixed in one product, others one after another."""
    stacked = torch.randn(4, 2, 3, 5, dtype=torch.double)
    layers = layers_of(stacked, together)
    assert (as_rows(layers) is not None) == together
    weights = torch.rand(4, dtype=torch.double, requires_grad=True)
    grad = torch.randn(2, 3, 5, dtype=torch.double)
    mixed = mix(weights, layers)
    torch.testing.assert_close(mixed, torch.einsum("l,lbtd->btd", weights, stacked))
    mixed.backward(grad)
    torch.testing.assert_close(weights.grad, torch.einsum("lbtd,btd->l", stacked, grad))


def test_layers_out_of_order_are_not_taken_for_a_matrix():
    stacked = torch.randn(3, 2, 3, 5)
    assert as_rows([stacked[0], stacked[2], stacked[1]]) is None
    assert as_rows([stacked[1], stacked[1], stacked[1]]) is None
    assert as_rows(list(stacked.transpose(1, 2))) is None
    assert as_rows([stacked[0], stacked[2]]) is not None
