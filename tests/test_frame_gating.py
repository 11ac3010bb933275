import math

import pytest
import torch

from speechfuse.interfaces.frame_gating import FrameGating
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.measure import peak_bytes
from speechfuse.types import LayerStack, StackSpec


def test_starts_as_the_plain_mean(stack):
    given = stack(garbage=0.0)
    part = FrameGating(given.spec, tasks=["asr"])
    torch.testing.assert_close(part(given, "asr").hidden, given.stacked().mean(0))


def test_without_gates_it_is_the_weighted_sum(stack):
    given = stack(garbage=0.0)
    part, plain = (cls(given.spec, tasks=["asr"]) for cls in (FrameGating, WeightedSum))
    part.logits.data = plain.logits.data = torch.randn(5)
    torch.testing.assert_close(part(given, "asr").hidden, plain(given, "asr").hidden)


def test_equals_a_loop_over_python_floats():
    torch.manual_seed(0)
    part = FrameGating(StackSpec(3, 2, 50.0), tasks=["asr"])
    part.logits.data, part.gates.data = torch.randn(3), torch.randn(3, 2)
    layers = torch.randn(3, 1, 2, 2)
    given = LayerStack(tuple(layers), torch.tensor([2]), 50.0)
    hidden, weights = part(given, "asr").hidden, part.layer_weights(given, "asr")[""]
    for frame in range(2):
        columns = layers[:, 0, frame].tolist()
        powers = [
            math.exp(logit + sum(g * h for g, h in zip(gate, column, strict=True)) / math.sqrt(2))
            for logit, gate, column in zip(
                part.logits.tolist(), part.gates.tolist(), columns, strict=True
            )
        ]
        shares = [power / sum(powers) for power in powers]
        torch.testing.assert_close(weights[:, 0, frame], torch.tensor(shares))
        expected = [
            sum(s * column[d] for s, column in zip(shares, columns, strict=True)) for d in (0, 1)
        ]
        torch.testing.assert_close(hidden[0, frame], torch.tensor(expected))


@pytest.mark.parametrize("mixed", [False, True])
def test_it_copies_no_layers_and_keeps_none(mixed):
    """The layers are 13 outputs, and half as many in bfloat16."""
    layers = tuple(torch.randn(13, 1, 2000, 64))
    given = LayerStack(layers, torch.tensor([2000]), 50.0)
    part = FrameGating(given.spec, tasks=["asr"])

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            hidden = part(given, "asr").hidden
        hidden.float().sum().backward()

    assert peak_bytes(step) < 4 * layers[0].nbytes
