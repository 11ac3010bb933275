import pytest
import torch

from speechfuse.interfaces.layer_cross_attention import LayerCrossAttention


@pytest.mark.parametrize("queries", [1, 3])
def test_is_the_attention_of_torch_over_the_layers_of_each_frame(stack, queries):
    torch.manual_seed(0)
    given = stack(garbage=0.5)
    part = LayerCrossAttention(given.spec, tasks=["asr"], queries=queries, heads=4)
    for parameter in part.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    layers = given.stacked().permute(1, 2, 0, 3).flatten(0, 1)  # (B * T, L, D)
    asked = part.queries.expand(len(layers), -1, -1)
    read, weights = part.attention(asked, layers, layers)  # weights (B * T, Q, L), mean of heads
    expected = part.project(read.flatten(1)).reshape(2, 7, 24)
    torch.testing.assert_close(part(given, "asr").hidden, expected)
    shares = weights.mean(1).T.reshape(5, 2, 7)
    torch.testing.assert_close(part.layer_weights(given, "asr")[""], shares)


def test_every_layer_counts_about_the_same_at_the_start(stack):
    torch.manual_seed(0)
    given = stack(garbage=0.0)
    weights = LayerCrossAttention(given.spec, tasks=["asr"]).layer_weights(given, "asr")[""]
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 5), atol=0.02, rtol=0)
