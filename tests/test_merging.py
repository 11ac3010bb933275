"""Merges: each against its equation in plain Python, and the contract for every option."""

from dataclasses import replace

import pytest
import torch
import yaml

from speechfuse import catalog
from speechfuse.alignment import align, aligned_specs
from speechfuse.build import build_fusion, read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RecipeError, ShapeError
from speechfuse.fusion import LayersFirst
from speechfuse.plan import plan_recipe
from speechfuse.train import train_run
from speechfuse.types import LayerStack, StackSpec

BASE = [StackSpec(13, 768, 50.0)] * 2
OPTIONS = [
    ("add", {}),
    ("add", {"width": "interpolate"}),
    ("add", {"width": "project"}),
    ("concat", {"projection": "after"}),
    ("concat", {"projection": "inside"}),
    ("concat", {"projection": "before"}),
    ("concat", {"projection": "before_per_layer"}),
    ("gated", {}),
    ("interleave", {}),
]


def recipe_of(merge, interface="hconv", upstreams=None, **fusion):
    return {
        "upstreams": upstreams or {"mel": {"kind": "filterbank"}},
        "fusion": {"merge": merge, "interface": {"kind": interface}, **fusion},
        "tasks": {"asr": {"corpus": "nothing-yet", "head": {"kind": "ctc"}}},
    }


def fusion_of(specs, merge, interface="hconv", **fusion):
    torch.manual_seed(0)
    return build_fusion(read_recipe(recipe_of(merge, interface, **fusion)), specs, ["asr"])


def merge_of(stacks, kind, **options):
    torch.manual_seed(0)
    return catalog.MERGES[kind]([s.spec for s in stacks], **options)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("dims", [(24, 24), (24, 16), (8, 24, 16), (24,)])
class TestMerge:
    def made(self, stack, kind, options, dims, garbage=0.0):
        stacks = [
            stack(dim=dim, seed=seed, garbage=garbage, lengths=(7, 4))
            for seed, dim in enumerate(dims)
        ]
        try:
            return merge_of(stacks, kind, **options), stacks
        except ShapeError:
            assert len(set(dims)) > 1
            pytest.skip("refuses unequal widths")

    def test_gives_the_shape_it_states(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims)
        merged = merge(stacks)
        assert merged.spec == merge.spec
        times = len(dims) if kind == "interleave" else 1
        assert merged.lengths.tolist() == [7 * times, 4 * times]
        assert merged.frame_rate == 50.0 * times
        assert merged.layers[0].shape[:2] == (2, 7 * times)

    def test_padding_never_reaches_a_valid_frame(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims, 1e4)
        _, others = self.made(stack, kind, options, dims, -7.0)
        one, other = merge(stacks), merge(others)
        for row, size in enumerate(one.lengths.tolist()):
            for a, b in zip(one.layers, other.layers, strict=True):
                assert torch.equal(a[row, :size], b[row, :size])

    def test_alone_equals_in_a_batch(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims)
        alone = merge(
            [LayerStack(tuple(h[1:, :4] for h in s.layers), s.lengths[1:], 50.0) for s in stacks]
        )
        size = int(alone.lengths[0])
        for a, b in zip(alone.layers, merge(stacks).layers, strict=True):
            torch.testing.assert_close(a[0], b[1, :size], atol=1e-5, rtol=1e-5)

    def test_every_parameter_gets_a_gradient(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims)
        if not list(merge.parameters()):
            pytest.skip("nothing is trained")
        merge(stacks).stacked().square().sum().backward()
        for label, parameter in merge.named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().sum() > 0, label

    def test_the_input_is_not_changed(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims)
        before = [s.stacked() for s in stacks]
        merge(stacks)
        assert all(torch.equal(a, s.stacked()) for a, s in zip(before, stacks, strict=True))

    def test_save_and_load_give_the_same_output(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims)
        fresh = catalog.MERGES[kind]([s.spec for s in stacks], **options)
        fresh.load_state_dict(merge.state_dict())
        assert torch.equal(merge(stacks).stacked(), fresh(stacks).stacked())

    def test_one_model_is_left_as_it_is(self, kind, options, dims, stack):
        merge, stacks = self.made(stack, kind, options, dims[:1])
        assert not list(merge.parameters())
        assert torch.equal(merge(stacks).stacked(), stacks[0].stacked())

    def test_the_whole_fusion_ends_in_the_widest_model(self, kind, options, dims, stack):
        _, stacks = self.made(stack, kind, options, dims)
        specs = aligned_specs([s.spec for s in stacks])
        fusion = fusion_of(specs, {"kind": kind, **options})
        frames = fusion(stacks, "asr")
        assert frames.hidden.shape[-1] == fusion.out_dim == max(dims)
        assert frames.frame_rate == fusion.frame_rate


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_a_fixed_one_is_linear_and_has_nothing_to_learn(kind, options, stack):
    every = catalog.checked_options("merge", kind, options)
    dims = (24, 16) if options.get("width") else (24, 24)
    made = merge_of([stack(dim=dim) for dim in dims], kind, **options)
    assert catalog.MERGES[kind].is_fixed(every) == (not parameters(made))
    if parameters(made):
        return

    def given(scale, shift):
        layers = (tuple(scale * a + shift * b for a, b in pairs) for pairs in both)
        return [replace(one, layers=each) for one, each in zip(stacks, layers, strict=True)]

    stacks, more = ([stack(seed=n + s, garbage=0.0) for n in range(2)] for s in (0, 2))
    both = [[*zip(a.layers, b.layers, strict=True)] for a, b in zip(stacks, more, strict=True)]
    one, two, mixed = (made(given(*by)).stacked() for by in ((1, 0), (0, 1), (2, 3)))
    torch.testing.assert_close(mixed, 2 * one + 3 * two)


def test_add_interpolates_features_linearly(stack):
    """The loop: feature j of the wider reads position (j + 0.5) * d / D - 0.5 of the narrower."""
    wide, narrow = stack(dim=24, seed=0, garbage=0.0), stack(dim=10, seed=1, garbage=0.0)
    merged = merge_of([narrow, wide], "add", width="interpolate")([narrow, wide])
    frame = narrow.layers[3][1, 2].tolist()
    expected = wide.layers[3][1, 2].clone()
    for j in range(24):
        position = min(max((j + 0.5) * 10 / 24 - 0.5, 0), 9)
        low, high = int(position), min(int(position) + 1, 9)
        expected[j] += frame[low] + (position - low) * (frame[high] - frame[low])
    torch.testing.assert_close(merged.layers[3][1, 2], expected)


def test_add_projects_the_narrower_models_alone(stack):
    stacks = [stack(dim=dim, seed=dim, garbage=0.0) for dim in (24, 10, 16)]
    merge = merge_of(stacks, "add", width="project")
    assert parameters(merge) == (10 * 24 + 24) + (16 * 24 + 24)
    _, second, third = merge.projections
    expected = stacks[0].layers[2] + stacks[1].layers[2] @ second.weight.T + second.bias
    expected = expected + stacks[2].layers[2] @ third.weight.T + third.bias
    torch.testing.assert_close(merge(stacks).layers[2], expected)


@pytest.mark.parametrize("dims", [(8, 8, 24), (24, 8, 8)])
def test_the_order_of_models_does_not_decide_the_precision(dims, stack):
    """In mixed precision projections give bfloat16, the widest model stays as it is."""
    stacks = [stack(dim=dim, seed=seed) for seed, dim in enumerate(dims)]
    merge = merge_of(stacks, "add", width="project")
    with torch.autocast("cpu", torch.bfloat16):
        assert merge(stacks).layers[0].dtype == torch.float32


def test_gated_starts_as_the_mean_and_weighs_models(stack):
    stacks = [stack(seed=seed, garbage=0.0) for seed in range(3)]
    merge = merge_of(stacks, "gated")
    mean = sum(s.layers[4] for s in stacks) / 3
    torch.testing.assert_close(merge(stacks).layers[4], mean)
    merge.logits.data = torch.tensor([0.0, 1.0, 2.0]).log()  # log 0: the first does not count
    expected = stacks[1].layers[4] / 3 + 2 * stacks[2].layers[4] / 3
    torch.testing.assert_close(merge(stacks).layers[4], expected)


def test_interleaved_frames_alternate(stack):
    stacks = [stack(seed=seed) for seed in range(3)]
    merged = merge_of(stacks, "interleave")(stacks)
    assert merged.frame_rate == 150.0
    for row, size in enumerate((7, 4)):
        assert int(merged.lengths[row]) == 3 * size
        expected = [stacks[n].layers[1][row, t] for t in range(size) for n in range(3)]
        assert torch.equal(merged.layers[1][row, : 3 * size], torch.stack(expected))


def test_concat_projects_before_as_products_of_each_model(stack):
    one, other = stack(dim=24, seed=0, garbage=0.0), stack(dim=16, seed=1, garbage=0.0)
    for projection, count in [("before", 1), ("before_per_layer", 5)]:
        merge = merge_of([one, other], "concat", projection=projection)
        assert len(merge.projections) == count
        for index in (0, 4):
            linear = merge.projections[index if count > 1 else 0]
            expected = one.layers[index] @ linear.weight[:, :24].T + linear.bias
            expected = expected + other.layers[index] @ linear.weight[:, 24:].T
            torch.testing.assert_close(merge([one, other]).layers[index], expected)


# HConv's 4,424,832 is published (Shih & Harwath 2024, Table 1); the readings of CHConv follow from
# its layout: docs/adr/0010-chconv.md.
@pytest.mark.parametrize(
    ("merge", "count"),
    [
        ({"kind": "add"}, 4_424_832),
        ({"kind": "gated"}, 4_424_832 + 2),
        ({"kind": "interleave"}, 4_424_832),
        ({"kind": "concat"}, 18_877_440),
        ({"kind": "concat", "projection": "after"}, 18_877_440),
        ({"kind": "concat", "projection": "none"}, 17_697_024),
        ({"kind": "concat", "projection": "inside"}, 14_747_520),
        ({"kind": "concat", "projection": "before"}, 5_605_248),
        ({"kind": "concat", "projection": "before_per_layer"}, 19_770_240),
    ],
)
def test_parameters_for_two_base_models_with_hconv(merge, count):
    with torch.device("meta"):
        fusion = fusion_of(BASE, merge)
    assert parameters(fusion) == count
    assert fusion.out_dim == (1536 if merge.get("projection") == "none" else 768)


def test_an_interface_that_cannot_end_in_another_width_is_refused():
    message = "end in 768 features, which 'weighted_sum' cannot; use interface .*'hconv'"
    with pytest.raises(RecipeError, match=message):
        fusion_of(BASE, {"kind": "concat", "projection": "inside"}, "weighted_sum")
    sized = {"kind": "hconv", "out_dim": 8}  # the library's to fill in
    with pytest.raises(RecipeError, match="out_dim: hconv has no such option"):
        read_recipe(recipe_of({"kind": "add"}) | {"fusion": {"interface": sized}})


@pytest.mark.parametrize("kind", ["add", "gated", "interleave"])
def test_unequal_widths_are_refused_with_what_to_do(kind):
    specs = [StackSpec(5, 24, 50.0), StackSpec(5, 32, 50.0)]
    message = rf"{kind} needs .* \[24, 32\]; use merge kind 'concat', or 'add' with width: project"
    with pytest.raises(ShapeError, match=message):
        catalog.MERGES[kind](specs)


@pytest.mark.parametrize("projection", ["inside", "before", "before_per_layer"])
def test_layers_first_refuses_a_projection_that_needs_several_layers(projection):
    merge = {"kind": "concat", "projection": projection}
    with pytest.raises(
        RecipeError, match=f"projection '{projection}' has nothing .* after or none"
    ):
        fusion_of(BASE, merge, order="layers_first")


def test_one_vector_of_each_model_is_not_interleaved():
    with pytest.raises(RecipeError, match=r"'mhfa' gives one vector .* use merge 'concat'"):
        fusion_of(BASE, {"kind": "interleave"}, "mhfa", order="layers_first")


@pytest.mark.parametrize(
    ("merge", "count", "dim"),
    [
        ({"kind": "add"}, 26, 768),
        ({"kind": "gated"}, 26 + 2, 768),
        ({"kind": "interleave"}, 26, 768),
        ({"kind": "concat"}, 26 + 1536 * 768 + 768, 768),
        ({"kind": "concat", "projection": "none"}, 26, 1536),
    ],
)
def test_parameters_of_two_weighted_sums_that_are_merged(merge, count, dim):
    with torch.device("meta"):
        fusion = fusion_of(BASE, merge, "weighted_sum", order="layers_first")
    assert parameters(fusion) == count
    assert fusion.out_dim == dim


def test_merges_read_what_each_model_s_interface_gives(stack):
    """Against the equations, by hand: 40 and 50 Hz, the first model twice as deep."""
    stacks = [stack(6, (7, 4), seed=1, garbage=0.0), stack(3, (6, 3), rate=40.0, seed=2)]
    specs = [s.spec for s in stacks]
    fusions = {
        kind: fusion_of(specs, {"kind": kind}, "weighted_sum", order="layers_first")
        for kind in ("add", "gated", "interleave")
    }
    means = [LayerStack((s.stacked().mean(0),), s.lengths, s.frame_rate) for s in stacks]
    one, other = (s.layers[0] for s in align(means))
    fusions["gated"].merge.logits.data = torch.tensor([1.0, 3.0]).log()
    for row, size in enumerate((7, 4)):
        a, b = one[row, :size], other[row, :size]
        found = {k: f(stacks, "asr").hidden[row] for k, f in fusions.items()}
        torch.testing.assert_close(found["add"][:size], a + b)
        torch.testing.assert_close(found["gated"][:size], a / 4 + 3 * b / 4)
        torch.testing.assert_close(found["interleave"][: 2 * size : 2], a)
        torch.testing.assert_close(found["interleave"][1 : 2 * size : 2], b)
    assert fusions["interleave"].frame_rate == 100.0


def test_layers_first_concatenates_unless_something_is_asked():
    given = recipe_of({"kind": "add"}, order="layers_first")
    assert read_recipe(given).fusion.merge.kind == "add"
    del given["fusion"]["merge"]
    assert read_recipe(given).fusion.merge.kind == "concat"


def test_without_projection_what_each_model_gives_lies_side_by_side(stack):
    stacks = [stack(dim=dim, seed=dim, garbage=0.0) for dim in (24, 16)]
    parts = [
        catalog.INTERFACES["single_layer"](given.spec, tasks=["asr"], layer=2) for given in stacks
    ]
    merge = catalog.MERGES["concat"](
        [replace(s.spec, num_layers=1) for s in stacks], projection="none"
    )
    fusion = LayersFirst(parts, merge)
    assert fusion.out_dim == 40
    assert not list(fusion.parameters())
    expected = torch.cat([given.layers[2] for given in stacks], dim=-1)
    torch.testing.assert_close(fusion(stacks, "asr").hidden, expected)
    with torch.device("meta"):
        plain = {"kind": "concat", "projection": "none"}
        assert fusion_of(BASE, plain, order="layers_first").out_dim == 1536


def test_plan_shows_the_merge():
    """Two filterbanks of 80 and 40 bands, one layer each: products by hand."""
    upstreams = {
        "fine": {"kind": "filterbank", "num_mels": 80, "frame_rate": 50},
        "coarse": {"kind": "filterbank", "num_mels": 40, "frame_rate": 50},
    }

    def row(**merge):
        recipe = read_recipe(recipe_of(merge, "weighted_sum", upstreams))
        _, columns, (found,) = plan_recipe(recipe)[1]
        named = dict(zip(columns, found, strict=True))
        return named["fusion"], int(named["parameters"].replace(",", ""))

    assert row(kind="add", width="interpolate") == ("1 x 80 -> 80 at 50 Hz", 1)
    assert row(kind="add", width="project") == ("1 x 80 -> 80 at 50 Hz", 1 + 40 * 80 + 80)
    assert row(kind="concat") == ("1 x 120 -> 80 at 50 Hz", 1 + 120 * 80 + 80)
    before = row(kind="concat", projection="before")
    assert before == ("1 x 80 -> 80 at 50 Hz", 120 * 80 + 80 + 1)
    upstreams["coarse"] = {"kind": "filterbank", "num_mels": 80, "frame_rate": 25}
    assert row(kind="gated") == ("1 x 80 -> 80 at 50 Hz", 2 + 1)
    assert row(kind="interleave") == ("1 x 80 -> 80 at 100 Hz", 1)


def test_the_same_encoder_twice_is_refused_unless_asked_for(encoder):
    one = {"kind": "huggingface", "source": str(encoder("whisper"))}
    same = one | {"length_policy": "masked"}  # the default, written out

    def read(other, **fusion):
        return read_recipe(recipe_of({"kind": "add"}, upstreams={"a": one, "b": other}, **fusion))

    with pytest.raises(RecipeError, match=r"'a' and 'b' are the same encoder .*allow_repeats"):
        read(same)
    assert read(same, allow_repeats=True).fusion.allow_repeats
    for change in ({"whisper_pad": 1}, {"weights": "random"}, {"revision": "a" * 40}):
        read(one | change)


def test_a_folder_made_before_these_options_still_opens(workspace):
    """Recipes were stored without them; an encoder could be there twice."""
    mel = {"kind": "filterbank"}
    recipe = read_recipe(
        recipe_of({"kind": "add"}, upstreams={"a": mel, "b": mel}, allow_repeats=True)
    )
    run = Run(workspace / "run")
    run.begin(recipe)
    path = workspace / "run" / "recipe.yaml"
    stored = yaml.safe_load(path.read_text())
    del stored["fusion"]["allow_repeats"], stored["fusion"]["merge"]["width"]
    path.write_text(yaml.safe_dump(stored))
    run.check(run.recipe())
    run.begin(recipe)
    assert "width" in path.read_text()


def test_interleaved_frames_count_for_ctc(workspace, tone_recipe):
    """Two words in 0.4 s: too long for 10 frames a second, not for those of two models in turn."""
    mel = {"kind": "filterbank", "num_mels": 24, "frame_rate": 10}
    tone_recipe["upstreams"] = {"a": mel, "b": mel}
    tone_recipe["fusion"] |= {"allow_repeats": True}
    tone_recipe["tasks"] = {"asr": tone_recipe["tasks"]["asr"]}
    tone_recipe["training"]["steps"] = 1
    with pytest.raises(DataError, match="texts are longer than their frames at 10 Hz"):
        train_run(read_recipe(tone_recipe), workspace / "run")
    interleaved = read_recipe(tone_recipe, ["fusion.merge.kind=interleave"])
    assert train_run(interleaved, workspace / "run")["targets_longer_than_frames"] == {}
