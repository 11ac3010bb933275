import math

import pytest
import torch

from speechfuse.build import build_fusion, read_recipe
from speechfuse.errors import RecipeError
from speechfuse.heads.speaker import Speaker
from speechfuse.interfaces.mhfa import MHFA
from speechfuse.train import train_run
from speechfuse.types import LayerStack, StackSpec, Tokens


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def linear(layer, vector):
    biases = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    rows = layer.weight.tolist()
    return [
        b + sum(w * x for w, x in zip(row, vector, strict=True))
        for row, b in zip(rows, biases, strict=True)
    ]


def test_equals_a_loop_over_python_floats():
    torch.manual_seed(0)
    layers, frames, dim, heads = 3, 4, 2, 2
    spec = StackSpec(layers, dim, 50.0)
    part = MHFA(spec, tasks=["sv"], heads=heads, compression=3, embedding_dim=5)
    part.logits.data = torch.randn(2, layers)
    hidden = torch.randn(layers, 1, frames + 2, dim)
    hidden[:, :, frames:] = 9.0  # padding
    given = LayerStack(tuple(hidden), torch.tensor([frames]), 50.0)
    keys, values = [], []
    for frame in range(frames):
        columns = hidden[:, 0, frame].tolist()
        key, value = (
            [sum(s * c[d] for s, c in zip(softmax(logits), columns, strict=True)) for d in (0, 1)]
            for logits in part.logits.tolist()
        )
        keys.append(linear(part.heads, linear(part.keys, key)))
        values.append(linear(part.values, value))
    read = []
    for head in range(heads):
        weights = softmax([key[head] for key in keys])
        read += [
            sum(w * value[i] for w, value in zip(weights, values, strict=True)) for i in range(3)
        ]
    out = part(given, "sv")
    torch.testing.assert_close(out.hidden[0, 0], torch.tensor(linear(part.project, read)))
    assert out.lengths.tolist() == [1]


def test_parameters_are_those_of_the_public_code_without_its_idle_biases():
    """13 x 768, 8 heads, 128, 256: two vectors of 13, two projections, heads, one projection."""
    part = MHFA(StackSpec(13, 768, 50.0), tasks=["sv"])
    public = 2 * 13 + 2 * (768 * 128 + 128) + (128 * 8 + 8) + (8 * 128 * 256 + 256)
    assert sum(p.numel() for p in part.parameters()) == public - (128 + 8)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_speaker_head_learns_from_one_vector(stack, standardize):
    """Over one frame the standard deviation is its floor, with a gradient of zero."""
    torch.manual_seed(0)
    given = stack()
    part = MHFA(given.spec, tasks=["sv"])
    head = Speaker(part.out_dim, num_classes=3, standardize=standardize)
    targets = Tokens(torch.tensor([[0], [2]]), torch.tensor([1, 1]))
    optimizer = torch.optim.Adam([*part.parameters(), *head.parameters()], 1e-2)
    losses = []
    for _ in range(10):
        loss = head.loss(part(given, "sv"), targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_recipe_trains_and_verifies_with_it(workspace, tone_recipe):
    tone_recipe["fusion"] = {"interface": {"kind": "mhfa", "heads": 2, "compression": 8}}
    tone_recipe["tasks"] = {"verification": tone_recipe["tasks"]["verification"]}
    tone_recipe["training"]["steps"] = 4
    metrics = train_run(read_recipe(tone_recipe), workspace / "run")
    assert 0 <= metrics["test"]["verification"]["eer"]["value"] <= 1


def test_recognition_is_refused_before_anything_is_extracted(workspace, tone_recipe):
    tone_recipe["fusion"] = {"interface": {"kind": "mhfa"}}
    with pytest.raises(RecipeError, match=r"task 'asr'.*one vector for each utterance"):
        train_run(read_recipe(tone_recipe), workspace / "run")
    assert not (workspace / "stores").exists()


def test_a_merge_does_not_override_the_width_that_is_asked_for():
    specs = [StackSpec(3, 24, 50.0)] * 2
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank"}},
        "fusion": {"merge": {"kind": "concat", "projection": "inside"}},
        "tasks": {"verification": {"corpus": "x", "head": {"kind": "speaker"}}},
    }
    recipe["fusion"]["interface"] = {"kind": "mhfa", "embedding_dim": 10}
    with pytest.raises(RecipeError, match="end in 24 features, which 'mhfa' cannot"):
        build_fusion(read_recipe(recipe), specs, ["verification"])
    recipe["fusion"]["merge"]["projection"] = "none"
    assert build_fusion(read_recipe(recipe), specs, ["verification"]).out_dim == 10
