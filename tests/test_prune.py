"""Pruning: what does not count goes, what counts stays, and what was done is not done again."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import speechfuse
from speechfuse import cli
from speechfuse.build import read_recipe
from speechfuse.catalog import trusted_code
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RunError
from speechfuse.experiments.compare import compare, find_systems
from speechfuse.experiments.pruning.cuts import Cut, cut_recipe, encoders_of, whole
from speechfuse.experiments.pruning.inherit import Inheritance
from speechfuse.experiments.pruning.run import prune_run
from speechfuse.experiments.pruning.search import search
from speechfuse.experiments.pruning.trial import Rule, Trial
from speechfuse.recipe import merged
from speechfuse.train import train_run
from speechfuse.types import Metric

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

HEARS = {"kind": "towers:Tower", "heard": 1}
DEAF = {"kind": "towers:Tower", "heard": -1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all runs of this file, so that a corpus is prepared once."""
    folder = tmp_path_factory.mktemp("pruning")
    with pytest.MonkeyPatch.context() as patch, trusted_code():
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def recipe(tiny_corpus):
    """Emotions of the tones, with two encoders: one hears at its first block, the other never."""
    emotion = {"corpus": str(tiny_corpus), "head": {"kind": "classifier"}}
    return {
        "seed": 1,
        "upstreams": {"deaf": DEAF, "hears": HEARS},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {"emotion": emotion},
        "training": {"steps": 16, "batch_seconds": 4, "learning_rate": 3e-2},
    }


def trained(recipe, folder, *changes):
    train_run(read_recipe(recipe, changes), folder)
    return folder


@pytest.fixture(scope="module")
def run(recipe, place):
    return trained(recipe, place / "run")


@pytest.fixture(scope="module")
def about(run):
    return prune_run(run, repeats=1)


def test_deaf_encoder_and_blocks_above_the_last_one_that_counts_go(run, about, place):
    assert Run(run).metrics()["dev"]["emotion"]["balanced_accuracy"]["value"] == 1
    out = place / "run-pruned"
    assert about == json.loads((out / "prune.json").read_text())
    pruned = Run(out)
    kept = {name: part.options["layers"] for name, part in pruned.recipe().upstreams.items()}
    assert kept == {"hears": [0, 1]}
    assert pruned.recipe().training.steps == 4
    assert [(t["what"], t["steps"], t["good_enough"]) for t in about["tried"]] == [
        ("nothing removed", 4, None),
        ("deaf left out, hears 3", 4, True),
        ("deaf left out, hears 1 of 3", 4, True),
        ("deaf left out, hears 0 of 3", 4, False),
    ]
    assert about["encoders"][1] == {
        "name": "hears",
        "layers": [0, 1],
        "blocks": [3, 1],
        "parameters": [3000, 1000],
    }
    assert pruned.metrics()["test"]["emotion"]["balanced_accuracy"]["value"] == 1
    (test,) = [d for d in about["test"] if d["metric"] == "balanced_accuracy"]
    assert test["difference"]["value"] >= 0
    assert [one["metric"] for one in about["trained_as_long"]] == ["accuracy", "balanced_accuracy"]
    assert not (place / "run-pruned.tried").exists()
    assert [d.difference.value for d in compare(find_systems([run, out]))] == [
        one["difference"]["value"] for one in about["test"]
    ]


def test_what_chance_may_have_chosen_is_said_first_and_last(run, about, place, caplog, capfd):
    said = "emotion: development has 2 speakers and 16 answers, of which one is worth 6.2 points"
    assert about["cautions"][0].startswith(said)
    told = []

    def stop(what, done, total):
        told.extend(caplog.messages)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_run(run, place / "cautious", repeats=1, tolerance=0.1, progress=stop)
    assert told[0].startswith("warning: emotion: development has 2 speakers, so chance may choose")
    done = CliRunner().invoke(cli.app, ["prune", "run", "--trust-code"], catch_exceptions=False)
    *_, last, where = done.stdout.splitlines()
    assert last.startswith(f"warning: {said}")
    assert where.startswith("run: ")
    assert "verdict on it" in done.stdout


def test_pruned_run_predicts(about, place, tiny_corpus):
    model = speechfuse.load(place / about["out"])
    assert model(tiny_corpus.with_name("s7-1.wav"))["emotion"].label == "loud"


def test_a_stop_loses_nothing_that_was_tried_and_no_test_set_was_scored(run, about, place):
    def stop(what, done, total):
        if what == "deaf left out, hears 1 of 3" and done == 3:
            raise KeyboardInterrupt

    again = place / "again"
    with pytest.raises(KeyboardInterrupt):
        prune_run(run, again, repeats=1, progress=stop)
    assert not again.exists()
    tables = [path.name for path in (place / "again.tried").rglob("*.tsv")]
    assert tables == ["dev_emotion.tsv"] * 3
    told = []
    found = prune_run(run, again, repeats=1, progress=lambda what, *_: told.append(what))
    assert [what for what in dict.fromkeys(told) if "hears" in what] == [
        "deaf left out, hears 1 of 3",
        "deaf left out, hears 0 of 3",
    ]
    assert found["tried"] == about["tried"]
    one, two = (load_file(place / name / "model.safetensors") for name in ("again", "run-pruned"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_cut_that_training_harms_is_kept_as_it_is(run, place):
    about = prune_run(run, place / "harmed", rate=1e4, repeats=1)
    assert about["tried"][0]["tasks"]["emotion"]["worse_by"]["value"] > 0
    cut = about["tried"][1]
    found = (cut["what"], cut["steps"], cut["good_enough"])
    assert found == ("deaf left out, hears 3", 0, True)
    assert Run(place / "harmed").recipe().training.steps == 0
    assert "trained_as_long" not in about  # the run itself is


def test_what_is_pruned_is_not_pruned_again(run, about):
    told = []
    assert prune_run(run, repeats=1, progress=lambda *t: told.append(t)) == about
    assert told == []
    with pytest.raises(RunError, match=r"run-pruned was pruned with .* \(differs in tolerance\)"):
        prune_run(run, tolerance=0.5)


def test_single_layer_is_cut_there_exactly_without_training(recipe, place, encoder):
    hubert = {"kind": "huggingface", "source": str(encoder("hubert"))}
    change = {"fusion": {"interface": {"kind": "single_layer", "layer": 1}}}
    alone = merged(recipe, change) | {"upstreams": {"hubert": hubert}}
    run = trained(alone, place / "single", "training.steps=2")
    (run / "notes.txt").write_text("of the user")
    about = prune_run(run, repeats=1)
    out = Run(place / "single-pruned")
    assert not (out.folder / "notes.txt").exists()
    assert about["exact"]
    assert about["tried"] == []
    assert "trained_as_long" not in about
    assert out.recipe().upstreams["hubert"].options["layers"] == [1]
    assert out.recipe().fusion.interface.options["layer"] == 0
    for split in ("dev", "test"):
        assert out.table(split, "emotion") == Run(run).table(split, "emotion")
    before, after = about["encoders"][0]["parameters"]
    assert after < before
    weights = [folder / "model.safetensors" for folder in (run, out.folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_where_all_of_it_counts_nothing_is_written(recipe, place):
    top = recipe | {"upstreams": {"hears": HEARS | {"heard": 3}}}
    run = trained(top, place / "all")
    done = CliRunner().invoke(cli.app, ["prune", "all", "--trust-code"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "nothing is removed: no cut that was tried keeps every task within 1 p" in done.stdout
    assert "hears 2 of 3" in done.stdout
    assert not (place / "all-pruned").exists()
    told = []
    about = prune_run(run, progress=lambda *t: told.append(t))
    assert told == []
    assert [t["what"] for t in about["tried"]] == [
        "nothing removed",
        "hears 1 of 3",
        "hears 2 of 3",
    ]


def test_one_layer_alone_is_nothing_to_prune(recipe, place):
    mel = recipe | {"upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}}}
    run = trained(mel, place / "mel", "training.steps=1")
    assert prune_run(run)["why"] == "encoder 'mel' is alone and has one layer"
    assert [path.name for path in place.glob("mel*")] == ["mel"]


def test_what_cannot_be_pruned_is_refused(run, place):
    with pytest.raises(RunError, match="is no run folder"):
        prune_run(place / "nowhere")
    with pytest.raises(RunError, match="run is there already; choose another --out"):
        prune_run(run, run)
    copy = shutil.copytree(run, place / "copy")
    (copy / "metrics.json").rename(copy / "kept.json")
    with pytest.raises(
        RunError, match=r"train it first: speechfuse train \S*copy/recipe\.yaml --out \S*copy$"
    ):
        prune_run(copy)
    (copy / "kept.json").rename(copy / "metrics.json")
    data = yaml.safe_load((copy / "recipe.yaml").read_text())
    data["tasks"]["emotion"]["corpus"] = "gone"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(DataError, match="no corpus 'gone'"):
        prune_run(copy)


def losses(**values):
    return {name: Metric(v / 100, v / 100 - 0.02, v / 100 + 0.02, 20) for name, v in values.items()}


def test_the_worst_task_decides_and_sure_looks_at_the_interval():
    assert Rule(0.01).keeps(losses(asr=1, emotion=-3))
    assert not Rule(0.01).keeps(losses(asr=1.1, emotion=-3))
    assert not Rule(0.01, sure=True).keeps(losses(asr=0))
    assert Rule(0.03, sure=True).keeps(losses(asr=1))
    one_voice = {"asr": Metric(0.0, 0.0, 0.0, 1)}
    assert Rule(0.01).keeps(one_voice)
    assert not Rule(0.01, sure=True).keeps(one_voice)


def test_halving_finds_the_lowest_block_that_counts(recipe, place):
    deep = recipe | {"upstreams": {"hears": HEARS | {"depth": 12}}}
    encoders = encoders_of(read_recipe(deep))
    for needed in range(13):
        tried = []

        def attempt(cut, needed=needed, tried=tried):
            tried.append(cut)
            lost = 0 if cut.layers["hears"][-1] >= needed else 50
            return Trial(cut, place, 0, {}, losses(emotion=lost))

        found = search(whole(encoders), encoders, Rule(0.01), attempt)
        assert found.cut.layers["hears"][-1] == needed
        assert (found.chosen is None) == (needed == 12)
        assert len(tried) <= 4


def test_state_0_that_was_dropped_stays_away(recipe):
    read = read_recipe(merged(recipe, {"fusion": {"interface": {"kind": "gated_encoder"}}}))
    assert read.fusion.drop_state_0
    encoders = encoders_of(read)
    assert encoders["hears"].layers == (1, 2, 3)
    cut = cut_recipe(read, whole(encoders).lowest("hears", 2), steps=7, rate=0.1)
    assert not cut.fusion.drop_state_0
    assert cut.upstreams["hears"].options["layers"] == [1, 2]
    assert cut.upstreams["deaf"].options["layers"] == [1, 2, 3]
    assert cut.training.steps == 7
    assert cut.training.learning_rate == pytest.approx(3e-3)
    assert cut_recipe(read, whole(encoders), steps=7).fusion.drop_state_0


def test_weights_of_what_is_left_are_taken_over(recipe):
    order = {"fusion": {"order": "layers_first"}}
    read = read_recipe(merged(recipe, order) | {"upstreams": {"deaf": DEAF, "hears": HEARS}})
    encoders = encoders_of(read)
    cut = Cut({"hears": (0, 1)})

    class Pruned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            part = torch.nn.Module()
            part.logits = torch.nn.Parameter(torch.zeros(2))
            task = torch.nn.Module()
            task.interfaces = torch.nn.ModuleList([part])
            task.project = torch.nn.Linear(24, 3)
            task.other = torch.nn.Linear(7, 3)
            self.fusions = torch.nn.ModuleDict({"emotion": task})

    model = Pruned()
    old = {
        "fusions.emotion.interfaces.0.logits": -torch.ones(4),
        "fusions.emotion.interfaces.1.logits": torch.tensor([1.0, 2, 3, 4]),
        "fusions.emotion.project.weight": torch.arange(144.0).reshape(3, 48),
        "fusions.emotion.project.bias": torch.ones(3),
        "fusions.emotion.other.weight": torch.ones(3, 9),
        "fusions.emotion.other.bias": torch.ones(3),
    }
    anew = Inheritance(read, encoders, cut, []).take(model, old)
    assert anew == ["fusions.emotion.other.weight"]
    found = model.state_dict()
    assert found["fusions.emotion.interfaces.0.logits"].tolist() == [1, 2]
    kept = old["fusions.emotion.project.weight"][:, 24:]
    assert torch.equal(found["fusions.emotion.project.weight"], kept)


@pytest.mark.recipe
def test_a_prompted_transformer_is_taken_over_whole(recipe, place):
    change = {
        "upstreams": {"hears": HEARS},
        "fusion": {"interface": {"kind": "gated_encoder"}, "per_task": False},
        "context": {"preset": "tiny", "interface": {"kind": "prompt_adaptive"}},
        "training": {"steps": 2, "learning_rate": 1e-6},
    }
    run = trained(merged(recipe, change) | {"upstreams": {"hears": HEARS}}, place / "harmonifuse")
    about = prune_run(run, tolerance=1, repeats=1)
    assert about["encoders"][0]["layers"] == [1]
    old, new = (load_file(place / about[name] / "model.safetensors") for name in ("run", "out"))
    for name, tensor in new.items():
        if name.startswith("reader."):  # one step at so low a rate
            assert torch.allclose(tensor, old[name], atol=1e-4), name
    assert speechfuse.load(place / about["out"]).tasks


@pytest.mark.recipe
def test_blocks_that_are_trained_stay_below_the_cut(recipe, place, encoder):
    hubert = {"kind": "huggingface", "source": str(encoder("hubert"))}
    tuned = {"training": {"steps": 2, "train_upstream": "top_1"}}
    run = trained(merged(recipe, tuned) | {"upstreams": {"hubert": hubert}}, place / "tuned")
    about = prune_run(run, tolerance=1, repeats=1)
    assert about["encoders"][0]["layers"] == [0, 1]
    assert any(
        "encoder.layers.0." in n for n in load_file(place / about["out"] / "model.safetensors")
    )
