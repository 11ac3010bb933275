"""Any encoders through any merge and interface: a clip alone gives what it gives in a batch."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from speechfuse import catalog
from speechfuse.build import build_fusion, read_recipe
from speechfuse.errors import RecipeError, ShapeError
from speechfuse.fusion import MergeFirst, fit_interfaces
from speechfuse.interfaces.gated_encoder import GatedEncoder
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.merging.add import Add
from speechfuse.types import LayerStack, StackSpec

MERGES = [
    {"kind": "add"},
    {"kind": "add", "width": "interpolate"},
    {"kind": "add", "width": "project"},
    *[{"kind": "concat", "projection": p} for p in ("after", "inside", "before", "none")],
    {"kind": "concat", "projection": "before_per_layer"},
    {"kind": "gated"},
    {"kind": "interleave"},
]
Shapes = Sequence[Sequence[tuple[int, int]]]
MEL = {"kind": "filterbank"}
LARGE = [[(49, 1280)], [(33, 1280)], [(25, 1024)], [(13, 768), (13, 768)], [(25, 1024), (13, 768)]]
PHASES = [Phase.reuse, Phase.generate]  # to shrink what fails would take minutes


def recipe_of(models, **fusion):
    return read_recipe(
        {
            "upstreams": dict.fromkeys("abc"[:models], MEL),
            "fusion": {"allow_repeats": True, **fusion},
            "tasks": {"asr": {"corpus": "none", "head": {"kind": "ctc"}}},
        }
    )


def fitting_merges(specs, **fusion):
    """Recipes of the merges that take these stacks; without learned weights all can be joined."""
    found = []
    for merge in MERGES:
        try:
            recipe = recipe_of(len(specs), merge=merge, **fusion)
            with torch.device("meta"):
                build_fusion(recipe, specs, ["asr"])
            found.append(recipe)
        except (RecipeError, ShapeError):
            assert merge != {"kind": "concat", "projection": "none"}
    return found


def some_encoders(draw, narrow, most):
    """most: layers times the square of all widths together, so that an example stays small."""
    widths = [80, 192] if narrow else [80, 192, 384, 768, 1280]
    models = draw(st.integers(1, 3), "models")
    one_width = draw(st.booleans(), "one width")
    dims = draw(st.lists(st.sampled_from(widths), min_size=models, max_size=models), "widths")
    dims = dims[:1] * models if one_width else dims
    deepest = max(1, min(49, most // sum(dims) ** 2))
    return [(draw(st.integers(1, deepest), "layers"), dim) for dim in dims]


def compare(data: st.DataObject, most: int = 0, large: Shapes = ()) -> None:
    """most: layers times the square of widths. large: in place of such encoders one of these sets,
    layers and width of each model, with few frames."""
    draw = data.draw
    interfaces = [*catalog.INTERFACES]
    if large:
        interfaces.remove("pca_concat")  # eigenvectors cost the cube of a width
    interface = draw(st.sampled_from(interfaces), "interface")
    if large:
        shapes = draw(st.sampled_from(large), "large")
    else:
        shapes = some_encoders(draw, interface == "pca_concat", most)
    longest = 2560 if large else 8000  # samples
    specs = [
        StackSpec(layers, dim, 16000 / draw(st.sampled_from([160, 320, 640, 1280]), "stride"))
        for layers, dim in shapes
    ]
    recipes = fitting_merges(
        specs,
        interface={"kind": interface},
        order=draw(st.sampled_from(["merge_first", "layers_first"]), "order"),
        normalize=draw(st.sampled_from(["none", "layer_norm", "unit_rms"]), "normalize"),
    )
    recipe = draw(st.sampled_from(recipes), "recipe")
    samples = draw(st.lists(st.integers(1280, longest), min_size=2, max_size=3), "samples")
    edges = [[draw(st.integers(0, 1), "lost at the edge") for _ in samples] for _ in specs]
    sizes = [
        [
            max(1, -int(-n * spec.frame_rate // 16000) - lost)
            for n, lost in zip(samples, own, strict=True)
        ]
        for spec, own in zip(specs, edges, strict=True)
    ]
    finest = max(spec.frame_rate for spec in specs)
    common = [
        min(own[row] for spec, own in zip(specs, sizes, strict=True) if spec.frame_rate == finest)
        for row in range(len(samples))
    ]

    random = torch.Generator().manual_seed(draw(st.integers(0, 99), "seed"))
    clips = [
        [torch.randn(s.num_layers, size, s.dim, generator=random) for size in own]
        for s, own in zip(specs, sizes, strict=True)
    ]

    def stacks(rows):
        made = []
        for spec, own in zip(specs, clips, strict=True):
            many = [own[row].shape[1] for row in rows]
            hidden = torch.full((spec.num_layers, len(rows), max(many), spec.dim), 1e6)  # garbage
            for place, row in enumerate(rows):
                hidden[:, place, : many[place]] = own[row]
            made.append(LayerStack(tuple(hidden), torch.tensor(many), spec.frame_rate))
        return made

    torch.manual_seed(0)
    fusion = build_fusion(recipe, specs, ["asr"]).eval()
    fit_interfaces(fusion, lambda: [stacks(range(len(samples)))])
    with torch.no_grad():
        for parameter in fusion.parameters():
            if not parameter.any():  # logits, as if they had been trained
                parameter.normal_()
        together = fusion(stacks(range(len(samples))), "asr")
        for row, size in enumerate(common):
            alone = fusion(stacks([row]), "asr")
            pools, merge_first = (
                catalog.INTERFACES[interface].pools,
                recipe.fusion.order != "layers_first",
            )
            size = 1 if pools else size
            if recipe.fusion.merge.kind == "interleave" and not (pools and merge_first):
                size *= len(specs)
            assert int(alone.lengths[0]) == int(together.lengths[row]) == size
            one, many = alone.hidden[0, :size], together.hidden[row, :size]
            assert one.shape == many.shape == (size, fusion.out_dim)
            torch.testing.assert_close(one, many, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(st.data())
def test_any_encoders_fuse_alone_as_in_a_batch(data):
    compare(data, 2_000_000)


@pytest.mark.recipe
@pytest.mark.timeout(300)
@settings(max_examples=60, deadline=None, phases=PHASES)
@given(st.data())
def test_larger_and_more_of_them_do_too(data):
    compare(data, 15_000_000)


@pytest.mark.recipe
@pytest.mark.timeout(300)
@settings(max_examples=12, deadline=None, phases=PHASES)
@given(st.data())
def test_the_largest_do_too(data):
    compare(data, large=LARGE)


@pytest.mark.parametrize("kind", [WeightedSum, GatedEncoder])
@pytest.mark.parametrize("rate", [50.0, 40.0])
def test_a_weighted_sum_of_summed_stacks_is_a_sum_of_weighted_sums(stack, kind, rate):
    one = stack(layers=5, lengths=(10, 5), dim=8, garbage=0.0)
    other = stack(layers=3, lengths=(10, 5) if rate == 50 else (8, 4), dim=8, rate=rate, seed=1)
    fusion = MergeFirst(
        Add([one.spec, other.spec]), kind(one.spec, tasks=["asr"]), normalize="layer_norm"
    )
    for logits in fusion.parameters():
        torch.nn.init.normal_(logits)
    found = fusion([one, other], "asr")
    wanted = fusion.interface(fusion.merged([one, other]), "asr")
    for row, size in enumerate(wanted.lengths.tolist()):
        torch.testing.assert_close(found.hidden[row, :size], wanted.hidden[row, :size])
    (logits,) = fusion.parameters()
    scale = torch.randn_like(wanted.hidden)
    scale[1, 5:] = 0
    grads = [torch.autograd.grad((f.hidden * scale).sum(), logits)[0] for f in (found, wanted)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
