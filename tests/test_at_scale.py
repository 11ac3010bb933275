"""Many hours on many GPUs, against sums made by hand."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from speechfuse.at_scale import scale_tables
from speechfuse.build import build_upstream, read_recipe
from speechfuse.cli import app
from speechfuse.errors import RecipeError


@pytest.fixture
def base(tmp_path):
    """A recipe of a base model, of which there is a configuration alone, and a filterbank."""
    (tmp_path / "base").mkdir()
    config = {"model_type": "hubert", "hidden_size": 768, "num_hidden_layers": 12}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    return {
        "upstreams": {
            "hubert": {"kind": "huggingface", "source": str(tmp_path / "base")},
            "mel": {"kind": "filterbank", "num_mels": 80},
        },
        "fusion": {"merge": {"kind": "concat"}, "interface": {"kind": "weighted_sum"}},
        "tasks": {"asr": {"corpus": "nothing-yet", "head": {"kind": "ctc"}}},
    }


def test_a_hundred_thousand_hours_on_64_gpus_by_hand(base):
    """13 layers of 768 at 50 Hz: 998,400 bytes a second in float16, 134 s in a shard."""
    rates = {"hubert": 500.0, "mel": 5000.0}
    extraction, storage, epoch = scale_tables(
        read_recipe(base), 1e5, 64, rates, training_rate=2000.0, reading=0.5, price=2.0
    )
    hubert, mel, both = extraction[2]
    shards = 3.6e8 * 998_400 / 2**27
    assert hubert == ["hubert", "500", f"{shards:,.0f}", "200", "3.1", "400"]
    assert mel[2] == "300,000"  # of 1,200 s
    assert both[3:] == ["220", "3.4", "440"]
    types = storage[1][1:]
    sizes = dict(zip(types, (row := storage[2][0])[1:], strict=True))
    assert row[0] == "hubert"
    assert sizes["float32"] == "718.8"
    assert sizes["float16"] == sizes["bfloat16"] == "359.4"
    assert sizes["int8"] == "179.7"
    reading, steps = epoch[2]
    hours = 3.6e8 * (998_400 + 16_000) / 5e8 / 3600  # with 80 channels at 100 Hz
    assert reading[1:] == [f"{hours:,.0f}", f"{hours / 64:,.1f}", f"{2 * hours:,.0f}"]
    assert steps[1:] == ["50", "0.8", "100"]


def test_a_rate_is_needed_and_of_an_upstream_that_is_there(base):
    recipe = read_recipe(base)
    with pytest.raises(RecipeError, match=r"no rate of mel; measure .*--json > rates\.json"):
        scale_tables(recipe, 10, 1, {"hubert": 500.0})
    with pytest.raises(RecipeError, match=r"--rate hubrt: no such upstream; .* mean 'hubert'"):
        scale_tables(recipe, 10, 1, {"hubrt": 500.0})
    assert len(scale_tables(recipe, 10, 1, {"": 500.0})) == 3


def test_what_is_trained_is_not_extracted(base):
    del base["upstreams"]["mel"]
    recipe = read_recipe(base | {"training": {"train_upstream": "all"}})
    with pytest.raises(RecipeError, match="every upstream is trained"):
        scale_tables(recipe, 10, 1, {"": 500.0})


def test_units_are_those_of_the_device_whatever_the_machine_is_called(base):
    recipe, rates = read_recipe(base), {"": 1.0}
    title, columns, _ = scale_tables(recipe, 9, 2, rates, where="Pencpus", device="cuda")[0]
    assert title == "Extraction of 9 h on 2 GPUs; rates of Pencpus"
    assert columns[3] == "GPU hours"
    title, *_ = scale_tables(recipe, 9, 2, rates, where="Xeon", device="cpu")[0]
    assert title == "Extraction of 9 h on 2 CPUs; rates of Xeon"


def test_altered_copies_count_for_the_task_that_has_the_most(base):
    """A copy at half the speed is twice as long; two more in noise: five hours of one."""
    augment = {"speed": [0.5, 1.0], "noise": {"copies": 2}}
    head = {"kind": "ctc"}
    base["tasks"] = {
        "asr": {"corpus": "nothing-yet", "head": head, "augment": augment},
        "other": {"kind": "asr", "corpus": "none", "head": head, "augment": {"speed": [0.9]}},
    }
    extraction, storage, _ = scale_tables(read_recipe(base), 100, 1, {"": 1.0})
    assert extraction[0] == "Extraction of 100 h and 400 h of altered copies on 1 GPUs"
    assert extraction[2][0][3] == "500"
    assert storage[2][0][1] == f"{500 * 3600 * 998_400 / 1e12:,.1f}"


def reduced(base, kind):
    """Two encoders of one shape under Add, for emotions: all of their layers, or less."""
    del base["upstreams"]["mel"]
    base["upstreams"]["random"] = base["upstreams"]["hubert"] | {"weights": "random"}
    base["fusion"]["merge"] = {"kind": "add"}
    base["tasks"] = {"emotion": {"corpus": "nothing-yet", "head": {"kind": "classifier"}}}
    return read_recipe(base | {"store": {"reduce": kind}})


@pytest.mark.parametrize("kind", ["none", "merged", "mean"])
def test_shards_and_reading_are_of_what_the_recipe_stores(base, kind):
    """By hand: of all layers, of half of them, or of 19,968 bytes for each of 72 million."""
    rates = {"": 100.0}
    extraction, storage, epoch = scale_tables(reduced(base, kind), 1e5, 64, rates)
    hubert, random, last = extraction[2]
    assert hubert[3:] == random[3:] == ["1,000", "15.6"]
    assert last[3:] == ["2,000", "31.2"]
    whole, mean = 3.6e8 * 998_400, 3.6e8 / 5 * 13 * 768 * 2
    name, shards, size = {
        "none": ("all", "", 2 * whole),
        "merged": ("hubert + random, merged", f"{whole / 2**27:,.0f}", whole),
        "mean": ("hubert + random, mean", "300,000", mean),
    }[kind]
    assert (last[0], last[2]) == (name, shards)
    assert (hubert[2] == "") == (kind != "none")
    assert epoch[2][0][1] == f"{size / 1e9 / 3600:,.0f}"
    sizes = {row[0]: row[1] for row in storage[2]}
    both = {"hubert + random, merged": "359.4", "hubert + random, mean": "1.4"}
    assert sizes == {"hubert": "359.4", "random": "359.4", **both}
    assert storage[0] == f"Stored layers, TB (reduce: {kind}; means of 72,000,000 utterances)"
    assert storage[2][-1][storage[1].index("int8")] == ""  # it is refused


def test_a_corpus_known_by_its_counts_alone_has_sizes_in_gb(base):
    """IEMOCAP: 10,039 utterances, 12.44 hours; and copies of each in noise."""
    recipe = reduced(base, "mean")
    _, (title, _, rows), _ = scale_tables(recipe, 12.44, 1, {"": 6.0}, utterances=10_039)
    assert title == "Stored layers, GB (reduce: mean; means of 10,039 utterances)"
    assert [row[1] for row in rows] == ["44.7", "44.7", "44.7", "0.20"]
    base["tasks"]["emotion"]["augment"] = {"noise": {"copies": 2}}
    _, (title, _, rows), _ = scale_tables(read_recipe(base), 12.44, 1, {"": 6.0}, utterances=10_039)
    assert "of 30,117 utterances" in title
    assert rows[-1][1] == "0.60"


def test_the_command_reads_the_rates_that_a_bench_measured(base, tmp_path):
    del base["upstreams"]["mel"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(base))
    macs = build_upstream(read_recipe(base), "hubert").plan.macs_per_second
    row = {"shape": "hubert-base", "multiply_adds": macs, "compute": "float32"}
    rows = [
        row | {"device": "cpu", "machine": "CPU, 1 of 2 threads", "rate": 2.0},
        row | {"device": "cuda", "machine": "A GPU", "rate": 1000.0},
        row | {"device": "cuda", "machine": "A GPU", "rate": 3000.0, "compute": "bfloat16"},
    ]
    (tmp_path / "rates.json").write_text(json.dumps({"rates": rows}))
    plan = ["plan", str(tmp_path / "r.yaml")]
    rates = ["--rates", str(tmp_path / "rates.json")]
    said = CliRunner().invoke(app, [*plan, "--hours", "1000", *rates])
    assert said.exit_code == 0, said.output
    assert "on 1 GPUs; rates of A GPU" in said.output
    assert re.search(r"hubert +│ +1000 │", said.output)
    narrow = CliRunner().invoke(
        app, [*plan, "--hours", "1000", *rates, "upstreams.hubert.compute=bfloat16"]
    )
    assert re.search(r"hubert +│ +3000 │", narrow.output)
    cut = CliRunner().invoke(app, [*plan, "--hours", "1000", *rates, "upstreams.hubert.layers=[3]"])
    assert isinstance(cut.exception, RecipeError)
    expected = (
        r"no rate of 'hubert' \(1 x 768, float32\) on cuda, it has hubert-base in bfloat16, "
        r"hubert-base in float32; measure .*: speechfuse bench extraction --json > rates\.json"
    )
    assert re.search(expected, str(cut.exception))
    (tmp_path / "cpu.json").write_text(json.dumps({"rates": rows[:1]}))
    slow = CliRunner().invoke(app, [*plan, "--hours", "9", "--rates", str(tmp_path / "cpu.json")])
    assert "Extraction of 9 h on 1 CPUs; rates of CPU, 1 of 2 threads" in slow.output
    assert "CPU hours" in slow.output
    assert "GPU" not in slow.output
    lost = CliRunner().invoke(app, [*plan, "--hours", "9", "--rates", str(tmp_path / "none.json")])
    assert re.search(r"no file .*none\.json; measure on", str(lost.exception))
    (tmp_path / "rates.json").write_text("{}")
    broken = CliRunner().invoke(app, [*plan, *rates])
    assert re.search(r"rates\.json is damaged .*write it again with", str(broken.exception))


def test_the_command_takes_rates_by_name(base, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(base))
    command = ["plan", str(tmp_path / "r.yaml"), "--hours", "100", "--rate", "50"]
    said = CliRunner().invoke(app, [*command, "--rate", "mel=5000", "--gpus", "8"])
    assert said.exit_code == 0
    assert "Extraction of 100 h on 8 GPUs" in said.output
    wrong = CliRunner().invoke(app, [*command, "--rate", "mel=fast"])
    assert "expected NAME=RATE" in str(wrong.exception)
