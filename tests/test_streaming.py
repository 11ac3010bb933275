"""Fusions that take layers one by one give what they give for whole stacks, and hold few."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import speechfuse
from speechfuse import build, catalog
from speechfuse.build import read_recipe
from speechfuse.cli import app
from speechfuse.contracts import Interface, Upstream, UpstreamPlan
from speechfuse.errors import RecipeError, ShapeError
from speechfuse.interfaces.hconv import HConv
from speechfuse.measure import peak_bytes
from speechfuse.model import SHARED, FusionModel
from speechfuse.train import train_run
from speechfuse.types import LayerStack, StackSpec, Waveforms
from speechfuse.upstreams.huggingface import HuggingFace

STREAMED = [n for n, part in catalog.INTERFACES.items() if part.stream is not Interface.stream]
TOGETHER = [n for n in catalog.INTERFACES if n not in STREAMED]
OPTIONS = {"single_layer": {"layer": 1}}
MERGES = [
    {"kind": "add"},
    {"kind": "add", "width": "interpolate"},
    {"kind": "add", "width": "project"},
    {"kind": "gated"},
    {"kind": "interleave"},
    *({"kind": "concat", "projection": p} for p in ("after", "inside", "before", "none")),
]
ENCODERS = [  # (layers, width, frames of the longer utterance, Hz) of each
    [(13, 24, 20, 50.0)],
    [(7, 24, 20, 50.0)] * 2,
    [(7, 24, 20, 50.0), (13, 16, 20, 50.0)],
    [(7, 24, 20, 50.0), (1, 24, 16, 40.0), (4, 24, 22, 50.0)],
]


def stacks_of(stack, shapes):
    return [
        stack(layers=layers, dim=dim, lengths=(size, size // 2), rate=rate, seed=seed, garbage=0.0)
        for seed, (layers, dim, size, rate) in enumerate(shapes)
    ]


def fusion_of(kind, stacks, **changes):
    interface = {"kind": kind, **OPTIONS.get(kind, {})}
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
    fusion = build.build_fusion(recipe, [s.spec for s in stacks], ["asr"])
    for name, parameter in fusion.named_parameters():
        if "logits" in name:
            torch.nn.init.normal_(parameter)
    return fusion


def stream_of(fusion, stacks):
    return fusion.stream("asr", [s.spec for s in stacks], [s.lengths for s in stacks])


@pytest.mark.parametrize("merge", MERGES, ids=lambda m: "-".join(m.values()))
@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("order", ["merge_first", "layers_first"])
def test_layers_one_by_one_give_the_same_frames(merge, kind, order, stack):
    compared = 0
    for shapes in ENCODERS:
        stacks = stacks_of(stack, shapes)
        for normalize, drop in (("none", False), ("layer_norm", True)):
            options = {"merge": merge, "order": order, "normalize": normalize, "drop_state_0": drop}
            try:
                fusion = fusion_of(kind, stacks, **options)
            except (RecipeError, ShapeError):  # other widths, or a projection within layers_first
                continue
            compare(fusion, stacks)
            compared += 1
    refused = order == "layers_first" and merge.get("projection") in ("inside", "before")
    assert bool(compared) != refused


def compare(fusion, stacks):
    """Layers in any order against whole stacks."""
    stream = stream_of(fusion, stacks)
    coming = [(model, index) for model, s in enumerate(stacks) for index in range(len(s.layers))]
    random.Random(len(coming)).shuffle(coming)
    for model, index in coming:
        stream.accumulate(index, stacks[model].layers[index], model)
    found = stream.result()
    with torch.no_grad():
        wanted = fusion(stacks, "asr")
    assert torch.equal(found.lengths, wanted.lengths)
    assert found.frame_rate == wanted.frame_rate
    assert not found.hidden.requires_grad
    for row, size in enumerate(wanted.lengths.tolist()):
        one, other = found.hidden[row, :size], wanted.hidden[row, :size]
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


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
    with torch.no_grad():
        for index, layer in enumerate(hidden):
            stream.add(index, layer)
        wanted = hconv(whole, "asr").hidden
        found = stream.frames()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_streams_in_mixed_precision(kind, dtype, stack):
    whole = stack(layers=13, dim=24, garbage=0.0)
    whole = replace(whole, layers=tuple(layer.to(dtype) for layer in whole.layers))
    part = catalog.INTERFACES[kind](whole.spec, tasks=["asr"], **OPTIONS.get(kind, {}))
    stream = part.to(dtype).stream("asr")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for index, layer in enumerate(whole.layers):
            stream.add(index, layer)
        wanted, found = part(whole, "asr").hidden, stream.frames()
    assert found.dtype == wanted.dtype
    scale = wanted.float().abs().max()
    torch.testing.assert_close(found.float(), wanted.float(), atol=float(scale) / 64, rtol=0)


class Tower(Upstream):
    """Layers that are made when they are asked for, of nothing but their number."""

    def __init__(self, layers, dim, seed):
        super().__init__()
        self.plan = UpstreamPlan(StackSpec(layers, dim, 50.0), 0, 0, 1)
        self.seed, self.passes = seed, 0

    def forward(self, wav):
        lengths, layers = self.stream(wav)
        return LayerStack(tuple(layers), lengths, 50.0)

    def stream(self, wav):
        self.passes += 1
        lengths = wav.lengths // 320
        shape = (len(lengths), int(lengths.max()), self.plan.spec.dim)
        generator = torch.Generator().manual_seed(self.seed)
        count = self.plan.spec.num_layers
        return lengths, (torch.randn(shape, generator=generator) for _ in range(count))

    def identity(self):
        return {}


WAV = Waveforms(torch.zeros(2, 32_000), torch.tensor([32_000, 16_000]), 16_000)


def heard(model, towers):
    return model.hear(towers, WAV, ["asr"])["asr"]


@pytest.mark.parametrize("order", ["merge_first", "layers_first"])
@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("depths", [(40,), (40, 40), (40, 25, 30)])
def test_what_is_held_is_no_stack(order, kind, depths):
    """Less than a quarter of the layers, weights of HConv that are laid out anew among it."""
    towers = [Tower(layers, 16, seed) for seed, layers in enumerate(depths)]
    merge = {"kind": "add"}
    fusion = fusion_of(kind, [one(WAV) for one in towers], merge=merge, order=order)
    model = FusionModel({SHARED: fusion}, {})

    def whole():
        return fusion([one(WAV) for one in towers], "asr").hidden

    with torch.no_grad():
        torch.testing.assert_close(heard(model, towers).hidden, whole(), atol=1e-5, rtol=1e-5)
        layers = sum(depths) * 2 * 100 * 16 * 4  # bytes
        assert peak_bytes(whole) > layers
        assert peak_bytes(lambda: heard(model, towers)) < layers / 4


@pytest.mark.recipe
@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": {"interface": {"kind": "hconv"}}},
        {"fusion": {"interface": {"kind": "cls_pooling"}}},  # which reads layers together
        {"training": {"train_upstream": {"hubert": "top_1"}}},
    ],
    ids=["streamed", "held", "tuned"],
)
def test_two_tasks_are_answered_from_one_pass(
    changes, encoder, workspace, tiny_corpus, monkeypatch
):
    names = ["hubert", "whisper"]
    corpus, short = str(tiny_corpus), {"steps": 2, "batch_seconds": 4}
    recipe = {
        "upstreams": {n: {"kind": "huggingface", "source": str(encoder(n))} for n in names},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {
            "asr": {"corpus": corpus, "head": {"kind": "ctc", "project": 8, "lstm_dim": 8}},
            "emotion": {"corpus": corpus, "head": {"kind": "classifier"}},
        },
    }
    recipe |= changes | {"training": {**short, **changes.get("training", {})}}
    train_run(read_recipe(recipe), workspace / "run")
    calls = []
    for method in ("stream", "forward"):
        was = getattr(HuggingFace, method)
        monkeypatch.setattr(
            HuggingFace, method, lambda s, wav, m=method, was=was: calls.append(m) or was(s, wav)
        )
    clip = tiny_corpus.parent / "s6-0.wav"
    model = speechfuse.load("run")
    answer = model(clip)
    assert [*answer.results] == ["asr", "emotion"]
    assert calls == ["stream"] * 2
    calls.clear()
    done = CliRunner().invoke(app, ["predict", "run", str(clip)])
    assert len(done.stdout.splitlines()) == 2, done.output
    assert calls == ["stream"] * 2
    whole = model(clip, layers=True)  # for which stacks are made
    assert calls.count("forward") == 2
    assert answer["asr"].text == whole["asr"].text
    assert answer["emotion"].scores == pytest.approx(whole["emotion"].scores, abs=1e-5)


def test_every_layer_comes_once(stack):
    whole = stack(layers=3)
    stream = stream_of(fusion_of("weighted_sum", [whole]), [whole])
    stream.accumulate(1, whole.layers[1])
    with pytest.raises(ShapeError, match=r"layer 1 of encoder 0 is not awaited, but \[0, 2\]"):
        stream.accumulate(1, whole.layers[1])
    with pytest.raises(ShapeError, match=r"layers \[0, 2\] of encoder 0 have not come"):
        stream.result()


@pytest.mark.parametrize("order", ["merge_first", "layers_first"])
@pytest.mark.parametrize("kind", TOGETHER)
def test_an_interface_that_cannot_says_so(kind, order, stack):
    stacks = [stack(), stack()]
    fusion = fusion_of(kind, stacks, merge={"kind": "add"}, order=order)
    with pytest.raises(ShapeError, match="reads all layers of a frame together"):
        stream_of(fusion, stacks)


def test_a_merge_that_treats_layers_differently_says_so(stack):
    stacks = [stack(), stack()]
    merge = {"kind": "concat", "projection": "before_per_layer"}
    with pytest.raises(ShapeError, match="does not do the same to every layer"):
        stream_of(fusion_of("weighted_sum", stacks, merge=merge), stacks)
