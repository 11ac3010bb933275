"""What a plan says is true, and it says so at once: no weights, no compiler, no data."""

import json
import subprocess
import sys

import pytest

from speechfuse.build import read_recipe
from speechfuse.plan import plan_recipe
from speechfuse.taskdata import load_tasks


def trained(recipe):
    """The table of the trained part, as one mapping for each task."""
    _, columns, rows = plan_recipe(read_recipe(recipe))[1]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def recipe_of(merge, *upstreams, interface="hconv"):
    return {
        "upstreams": {f"u{i}": part for i, part in enumerate(upstreams)},
        "fusion": {"merge": {"kind": merge}, "interface": {"kind": interface}},
        "tasks": {"asr": {"corpus": "nothing-yet", "head": {"kind": "ctc"}}},
    }


def encoder_of(folder, layers, dim):
    """A folder with a configuration and no weights."""
    folder.mkdir()
    config = {"model_type": "hubert", "hidden_size": dim, "num_hidden_layers": layers - 1}
    (folder / "config.json").write_text(json.dumps(config))
    return {"kind": "huggingface", "source": str(folder)}


def test_hconv_of_a_base_model_has_the_published_parameters_and_products(tmp_path):
    """13 -> 5 -> 2: every tap that meets a layer is one product, 50 frames a second."""
    (row,) = trained(recipe_of("add", encoder_of(tmp_path / "base", 13, 768)))
    assert row["fusion"] == "13 x 768 -> 768 at 50 Hz"
    assert row["parameters"] == "4,424,832"
    first = 3 + 5 + 5 + 5 + 3  # taps of five positions, two beyond either end
    second = 3 + 4  # taps of two positions over five layers
    macs = 50 * (first * 768 * 768 + second * 768 * 384)
    assert row["multiply-adds / s"] == f"{macs / 1e9:.4f} G"


def test_concat_adds_its_projection(tmp_path):
    parts = [encoder_of(tmp_path / str(dim), 3, dim) for dim in (768, 512)]
    (row,) = trained(recipe_of("concat", *parts, interface="weighted_sum"))
    assert row["fusion"] == "3 x 1280 -> 768 at 50 Hz"
    assert row["parameters"] == f"{3 + 1280 * 768 + 768:,}"
    assert row["multiply-adds / s"] == f"{50 * 1280 * 768 / 1e9:.4f} G"


@pytest.mark.parametrize(
    ("training", "trained"),
    [
        ({"train_upstream": "top_1"}, 4 * (64 * 64 + 64) + 2 * 64 * 96 + 96 + 64 + 4 * 64),
        ({"lora": {"rank": 3}}, 2 * 2 * 3 * (64 + 64)),
        ({"train_upstream": {"u0": "none"}}, None),
    ],
)
def test_a_tuned_upstream_is_counted_and_not_stored(tmp_path, training, trained):
    """One block of a transformer by hand; two adapters of rank 3 in each of two blocks."""
    source = encoder_of(tmp_path / "e", 3, 64)
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    sizes = {"num_attention_heads": 4, "intermediate_size": 96}
    (tmp_path / "e" / "config.json").write_text(json.dumps(config | sizes))
    recipe = recipe_of("add", source) | {"training": training}
    upstreams, _, stores = plan_recipe(read_recipe(recipe))
    row = dict(zip(upstreams[1], upstreams[2][0], strict=True))
    stored = stores[2][0][1]
    assert row["trained"] == (f"{trained:,}" if trained else "none, frozen")
    assert (stored == "nothing, it is trained") == bool(trained)
    memory = 4 * int(row["parameters"].replace(",", "")) + 12 * (trained or 0)
    assert row["memory"] == f"{memory / 1e6:.1f} MB"


@pytest.mark.recipe
def test_nothing_slow_is_imported(tmp_path):
    """Torch alone takes a second; what is named here would take one more each."""
    recipe = recipe_of("concat", {"kind": "filterbank"}, encoder_of(tmp_path / "e", 3, 64))
    heads = {"asr": "ctc", "emotion": "classifier", "verification": "speaker"}
    recipe["tasks"] = {t: {"corpus": "x", "head": {"kind": h}} for t, h in heads.items()}
    code = (
        "import json, sys; from speechfuse.build import read_recipe;"
        "from speechfuse.plan import plan_recipe; plan_recipe(read_recipe(json.load(sys.stdin)));"
        "slow = {'torch._dynamo', 'sympy', 'transformers', 'lightning', 'lhotse'} & {*sys.modules};"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], input=json.dumps(recipe), text=True, check=True)


def stored(recipe):
    return {row[0]: row[1] for row in plan_recipe(read_recipe(recipe))[-1][2]}


def test_a_plan_says_how_long_layers_take_and_whence_it_knows(tmp_path):
    """By rates that are given: at 50 and 100 s in a second an hour takes 72 and 36 s."""
    recipe = recipe_of("add", encoder_of(tmp_path / "a", 3, 64), encoder_of(tmp_path / "b", 5, 64))
    recipe["tasks"] = {"emotion": {"corpus": "none-yet", "head": {"kind": "classifier"}}}
    recipe["fusion"]["merge"] = {"kind": "concat"}
    title, columns, rows = plan_recipe(read_recipe(recipe), {"u0": 50.0, "u1": 100.0})[-1]
    assert columns[3:] == ["an hour takes about", "these take about"]
    both = {"u0": "1.2 min", "u1": "36 s", "u0 + u1, merged": "1.8 min"}
    assert {row[0]: row[3] for row in rows} == both
    assert title.endswith("; times rates as given")
    title, _, rows = plan_recipe(read_recipe(recipe))[-1]
    assert "; times guessed from multiply-adds" in title
    assert all(row[3] for row in rows)


def test_the_time_of_a_prepared_corpus_is_that_of_its_hours(workspace, tone_recipe):
    recipe = read_recipe(tone_recipe)
    load_tasks(recipe)
    (summary,) = workspace.rglob("corpus.json")
    hours = json.loads(summary.read_text())["hours"]
    row = plan_recipe(recipe, {"": 0.5})[-1][2][0]
    assert row[4] == f"{2 * 3600 * hours:.0f} s"


def test_a_corpus_is_counted_once_for_each_noise_and_one_that_is_not_prepared_is_named(
    workspace, tone_recipe
):
    """Two tasks read the same layers; a third one those in noise; a fourth has no corpus yet."""
    tasks = tone_recipe["tasks"]
    tasks["emotion"]["noise_snr"] = 10
    load_tasks(read_recipe(tone_recipe))
    (summary,) = workspace.rglob("corpus.json")
    hours = json.loads(summary.read_text())["hours"]
    title, _, (row,) = plan_recipe(read_recipe(tone_recipe), {"": 1.0})[-1]
    assert row[4] == f"{2 * 3600 * hours:.0f} s"
    assert "not prepared" not in title
    tasks["other"] = {**tasks["asr"], "kind": "asr", "corpus": "none-yet"}
    title, _, (row,) = plan_recipe(read_recipe(tone_recipe), {"": 1.0})[-1]
    assert row[4] == f"{2 * 3600 * hours:.0f} s"
    assert "without none-yet, which is not prepared" in title


def test_what_may_be_stored_smaller_stands_beside_all_layers(tmp_path):
    """13 x 768 of two encoders in float16: 50 frames a second, or one vector an utterance."""
    upstreams = [encoder_of(tmp_path / name, 13, 768) for name in ("a", "b")]
    recipe = recipe_of("add", *upstreams, interface="weighted_sum")
    recipe["upstreams"]["u1"]["weights"] = "random"
    hour = f"{3600 * 50 * 13 * 768 * 2 / 1e9:.2f} GB"
    sizes = {"u0": hour, "u1": hour, "u0 + u1, merged": hour}
    assert stored(recipe) == sizes  # a head for texts reads every frame
    recipe["tasks"] = {"emotion": {"corpus": "none-yet", "head": {"kind": "classifier"}}}
    mean = {"u0 + u1, mean": "19.97 kB an utterance"}
    assert stored(recipe) == sizes | mean
    assert stored(recipe | {"store": {"reduce": "mean"}}) == sizes | mean
    recipe["fusion"]["merge"] = {"kind": "gated"}
    assert stored(recipe) == {"u0": hour, "u1": hour}
    recipe["upstreams"].pop("u1")
    assert stored(recipe) == {"u0": hour, "u0, mean": "19.97 kB an utterance"}


def test_crops_of_two_rates_are_planned_without_a_merged_stack():
    rates = [{"kind": "filterbank", "frame_rate": rate} for rate in (100, 50)]
    recipe = recipe_of("add", *rates)
    head = {"kind": "classifier"}
    recipe["tasks"] = {"emotion": {"corpus": "none-yet", "head": head, "crop_seconds": 1}}
    assert stored(recipe).keys() == {"u0", "u1"}
