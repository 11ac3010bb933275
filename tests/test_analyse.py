"""Layer use: weights, their sizes, and what a layer's absence costs."""

import pytest
import torch

from speechfuse import build
from speechfuse.analyse import SAMPLE, LayerUse, layer_use
from speechfuse.errors import RecipeError
from speechfuse.experiments.layers import layer_figure, layer_tables, run_layer_use
from speechfuse.extract import fill_stores
from speechfuse.model import FusionModel
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run


@pytest.fixture
def trained(workspace, tone_recipe, encoder):
    """A function from a fusion section to a model, its tasks and stores; two upstreams."""

    def make(fusion):
        source = str(encoder("hubert"))
        tone_recipe["upstreams"] = {
            "ssl": {"kind": "huggingface", "source": source},
            "other": {"kind": "huggingface", "source": source, "weights": "random"},
        }
        tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
        recipe = build.read_recipe(tone_recipe | {"fusion": fusion})
        tasks = load_tasks(recipe)
        parts = {name: data.task for name, data in tasks.items()}
        torch.manual_seed(3)
        model: FusionModel = build.build_model(recipe, build.stack_specs(recipe), parts)
        numbers = {n: build.build_upstream(recipe, n).layers for n in recipe.upstreams}
        return model, tasks, fill_stores(recipe, tasks), numbers

    return make


def test_a_layer_that_is_not_read_costs_nothing(trained):
    one_layer = {"kind": "single_layer", "layer": 2}
    uses = layer_use(*trained({"order": "layers_first", "interface": one_layer}))
    by_model = {use.model: use.ablation for use in uses if use.ablation}
    assert by_model.keys() == {"ssl", "other"}
    for rises in by_model.values():
        assert abs(rises[2]) > 1e-4
        assert [rise for layer, rise in enumerate(rises) if layer != 2] == [0.0] * (len(rises) - 1)


def test_weights_are_the_interface_s_and_sizes_count(trained):
    model, tasks, stores, names = trained({"interface": {"kind": "weighted_sum"}})
    fusion = model.fusion_of("emotion")
    with torch.no_grad():
        fusion.interface.logits.copy_(
            torch.tensor([0.0, 1.0, 2.0, 3.0])[: len(fusion.interface.logits)]
        )
    (use,) = (u for u in layer_use(model, tasks, stores, names) if u.weights)
    assert use.model == "ssl + other"
    expected = fusion.interface.logits.softmax(0)
    torch.testing.assert_close(torch.tensor(use.weights), expected.detach())
    members = tasks["emotion"].splits["train"]
    sample = members[:: max(1, len(members) // SAMPLE)][:SAMPLE]
    stack = fusion.merged([store.batch(sample) for store in stores["emotion"]])
    assert len(set(stack.lengths.tolist())) == 1  # so that a plain mean is the mean of all frames
    sizes = torch.stack([layer.square().mean().sqrt() for layer in stack.layers])
    scaled = expected * sizes / (expected * sizes).sum()
    torch.testing.assert_close(torch.tensor(use.scaled), scaled.detach())


def test_a_model_has_one_table(trained):
    fusion = {"order": "layers_first", "interface": {"kind": "weighted_sum"}}
    tables = layer_tables(layer_use(*trained(fusion)))
    assert [title for title, *_ in tables] == ["emotion, ssl", "emotion, other"]
    rows = ["weight", "weight x size", "gradient", "loss without"]
    assert [[row[0] for row in body] for *_, body in tables] == [rows, rows]
    assert all(len(row) == len(columns) for _, columns, body in tables for row in body)
    merged = layer_tables(layer_use(*trained({"interface": {"kind": "weighted_sum"}})))
    assert [title for title, *_ in merged] == [
        "emotion, ssl + other",
        "emotion, ssl",
        "emotion, other",
    ]
    assert [[row[0] for row in body] for *_, body in merged] == [rows[:3], rows[3:], rows[3:]]


def test_keys_are_shown_beside_values(trained):
    model, tasks, stores, names = trained({"interface": {"kind": "mhfa"}})
    part = model.fusion_of("emotion").interface
    with torch.no_grad():
        part.logits[0, 1] = 2.0  # of the keys
    uses = [u for u in layer_use(model, tasks, stores, names) if u.weights or u.gradient]
    whole, keys, values = uses
    assert (whole.model, whole.weights) == ("ssl + other", None)
    assert [keys.model, values.model] == ["ssl + other, keys", "ssl + other, values"]
    assert keys.weights == pytest.approx(part.logits[0].softmax(0).tolist())
    assert max(keys.weights) > 0.5
    assert values.weights == pytest.approx([1 / len(values.weights)] * len(values.weights))


@pytest.mark.parametrize(
    ("order", "read"),
    [("merge_first", ["0.73 ssl + 0.27 other"]), ("layers_first", ["0.73 ssl", "0.27 other"])],
)
def test_a_weighed_model_shows_its_weight(trained, order, read):
    fusion = {"order": order, "merge": {"kind": "gated"}, "interface": {"kind": "weighted_sum"}}
    model, tasks, stores, names = trained(fusion)
    with torch.no_grad():
        model.fusion_of("emotion").merge.logits.copy_(torch.tensor([1.0, 0.0]))
    assert [u.model for u in layer_use(model, tasks, stores, names) if u.weights] == read


@pytest.mark.recipe
@pytest.mark.parametrize("order", ["layers_first", "merge_first"])
def test_sizes_are_of_the_layers_that_the_interface_reads(trained, order):
    fusion = {"order": order, "normalize": "unit_rms", "interface": {"kind": "weighted_sum"}}
    model, tasks, stores, names = trained(fusion | {"merge": {"kind": "concat"}})
    for use in (u for u in layer_use(model, tasks, stores, names) if u.weights):
        # All layers have one size, so the shares are the weights.
        assert use.scaled == pytest.approx(use.weights, abs=1e-4)


def test_layers_of_a_subset_keep_their_numbers(encoder, tone_recipe, workspace):
    ssl = {"kind": "huggingface", "source": str(encoder("hubert")), "layers": [1, 3]}
    tone_recipe["upstreams"] = {"ssl": ssl}
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    train_run(build.read_recipe(tone_recipe), workspace / "run")
    uses = run_layer_use(workspace / "run")
    assert [list(u.numbered(u.weights)) for u in uses if u.weights] == [[1, 3]]
    assert [list(u.numbered(u.ablation)) for u in uses if u.ablation] == [[1, 3]]
    for axis in layer_figure(uses).axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "3"]


@pytest.mark.parametrize("gradient", [[0.25, 0.75], [0.5, 0.5]])
def test_a_gradient_that_is_the_weights_is_not_drawn_again(gradient):
    use = LayerUse("asr", "ssl", [0.25, 0.75], None, [0.0, 0.1], [gradient])
    titles = [axis.get_title(loc="left") for axis in layer_figure([use]).axes]
    assert ("share of the gradient to each layer" in titles) == (gradient != use.weights)
    assert len(titles) == 2 + (gradient != use.weights)


def test_dropping_state_0_of_a_subset_is_refused(encoder, tone_recipe):
    ssl = {"kind": "huggingface", "source": str(encoder("hubert")), "layers": [1, 3]}
    fusion = tone_recipe["fusion"] | {"drop_state_0": True}
    asked = tone_recipe | {"upstreams": {"ssl": ssl}, "fusion": fusion}
    with pytest.raises(RecipeError, match="leave 0 out of its layers"):
        build.read_recipe(asked)
