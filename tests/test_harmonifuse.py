"""HarmoniFuse from recipe to answers: one model, several tasks by prompt, and what it refuses."""

import json
import random
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

import killing
from speechfuse import build
from speechfuse.analyse import CONTEXT
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RecipeError, RunError
from speechfuse.experiments.layers import run_layer_use
from speechfuse.predict import predict_files
from speechfuse.recipe import merged
from speechfuse.train import train_run
from speechfuse.types import LayerStack, StackSpec

TINY = {"preset": "tiny", "layers": 2, "dim": 32, "heads": 2, "join": 4}


@pytest.fixture
def recipe(tone_recipe):
    change = {
        "fusion": {"interface": {"kind": "gated_encoder"}, "per_task": False},
        "context": TINY,
        "tasks": {"asr": {"units": "characters", "head": {"kind": "text", "ctc": 0.3}}},
        "training": {"evaluate_every": 4},
    }
    return merged(tone_recipe, change)


class Stop(Exception):
    pass


@pytest.mark.recipe
@pytest.mark.parametrize("stop", [2, 5, 11])
def test_a_stopped_run_goes_on_to_the_same_weights(workspace, recipe, stop):
    """With dropout and gate scalars of their own rate."""
    made = read_recipe(merged(recipe, {"training": {"layer_rate": 5}}))
    train_run(made, workspace / "whole")

    def interrupt(what, done, total):
        if what == "training steps" and done == stop:
            raise Stop

    with pytest.raises(Stop):
        train_run(made, workspace / "parts", interrupt)
    train_run(made, workspace / "parts")
    whole, parts = (load_file(workspace / n / "model.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.recipe
@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_killed_at_random_steps_and_run_again_it_has_the_same_weights(workspace, recipe, kills):
    """Twice each time, in a step, while it is scored or while a checkpoint is written."""
    change = {"interleave": {"loss_aware": 1}, "evaluate_every": 3}
    recipe = merged(recipe, {"training": change})
    whole, folder, steps = workspace / "whole", workspace / "parts", workspace / "steps"
    train_run(read_recipe(recipe), whole)
    wanted = load_file(whole / "model.safetensors")
    moments, cut = random.Random(kills), 0
    times = max(2, kills // 5)
    for number in range(times):
        begun, stops = [], sorted(moments.sample(range(1, 12), 2))
        for stop in (*stops, None):
            steps.unlink(missing_ok=True)
            process = killing.begin_training(recipe, folder, steps, stop, moments.uniform(0, 0.1))
            process.join()
            cut += process.exitcode == -signal.SIGKILL
            begun.append(int(steps.read_text().split()[0]) if steps.exists() else 12)
        assert process.exitcode == 0
        kept = (stops[0] - 1) // 3 * 3  # the checkpoint of the step at which it ends may be cut
        assert begun[1] > kept, "it began anew"
        found = load_file(folder / "model.safetensors")
        assert found.keys() == wanted.keys()
        same = all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert same, f"run {number}, killed after steps {stops}"
        assert Run(folder).metrics()["test"] == Run(whole).metrics()["test"]
        shutil.rmtree(folder)
    assert cut >= times, "the kills came too late to cut anything"


@pytest.mark.recipe
def test_one_model_answers_every_task_and_shows_its_layers(workspace, recipe, tiny_corpus):
    train_run(read_recipe(recipe), workspace / "run")
    files = [tiny_corpus.parent / f"s7-{i}.wav" for i in range(2)]
    lines = [line.split("\t") for line in predict_files(workspace / "run", files)]
    assert [line[1] for line in lines[:4]] == ["asr", "emotion", "asr", "emotion"]
    run = Run(workspace / "run")
    for task, found in (("asr", lines[:4:2]), ("emotion", lines[1:4:2])):
        kept = {row["id"]: row["prediction"] for row in run.table("test", task)}
        assert [line[2] for line in found] == [kept["s7-0"], kept["s7-1"]]
    every = run.metrics()["all_parameters"]
    assert every == sum(t.numel() for t in load_file(run.folder / "model.safetensors").values())
    assert every < sum(run.metrics()["parameters"].values())  # the transformer is of all tasks
    cut = [row["cut"] == "yes" for row in run.table("test", "asr")]
    assert run.metrics()["texts_cut"]["test"].get("asr", 0) == sum(cut)
    marked = {row["id"]: bool(row["cut"]) for row in run.table("test", "asr")}
    assert [len(line) > 3 for line in lines[:4:2]] == [marked["s7-0"], marked["s7-1"]]
    uses = [use for use in run_layer_use(workspace / "run") if use.model == CONTEXT]
    assert [use.task for use in uses] == ["asr", "emotion", "verification"]
    assert all(abs(sum(use.weights) - 1) < 1e-5 and len(use.weights) == 2 for use in uses)


@pytest.mark.recipe
def test_it_learns_to_write_on_tones(workspace, recipe):
    """There are nine texts of two words; chance is a word error rate of two thirds."""
    change = {
        "context": {"dim": 64, "dropout": 0.0},
        "training": {
            "steps": 300,
            "learning_rate": 3e-3,
            "evaluate_every": 100,
            "batch_seconds": 8,
        },
    }
    given = merged(recipe, change)
    given["tasks"].pop("verification")
    metrics = train_run(read_recipe(given), workspace / "run")
    assert metrics["test"]["asr"]["wer"]["value"] < 0.2


def test_texts_are_written_in_pieces_unless_asked(recipe, tone_recipe):
    recipe["tasks"]["asr"].pop("units")
    units = [read_recipe(r).tasks["asr"].options["units"] for r in (recipe, tone_recipe)]
    assert units == ["bpe", "characters"]


@pytest.mark.recipe
def test_hconv_over_several_encoders_may_feed_the_transformer(workspace, recipe, encoder):
    """The union of both papers: merged models, HConv over their layers, prompt, fused layers."""
    change = {
        "upstreams": {
            "one": {"kind": "huggingface", "source": str(encoder("hubert"))},
            "two": {"kind": "huggingface", "source": str(encoder("whisper"))},
        },
        "fusion": {"interface": {"kind": "hconv"}, "merge": {"kind": "add", "width": "project"}},
        "training": {"steps": 3},
    }
    given = merged(recipe, change)
    given["upstreams"].pop("mel")
    given["fusion"]["drop_state_0"] = True
    metrics = train_run(read_recipe(given), workspace / "run")
    assert set(metrics["test"]) == {"asr", "emotion", "verification"}


@pytest.mark.recipe
def test_mixed_precision_trains_and_writes(workspace, recipe):
    change = {"training": {"precision": "bf16-mixed", "steps": 4, "evaluate_every": 2}}
    metrics = train_run(read_recipe(merged(recipe, change)), workspace / "run")
    assert metrics["test"]["asr"]["cer"]["value"] >= 0


@pytest.mark.recipe
def test_heads_without_text_read_speech_if_asked(workspace, recipe):
    change = {
        "tasks": {
            "asr": {"units": "bpe", "head": {"kind": "ctc", "project": 8, "lstm_layers": 0}},
            "emotion": {"read": "speech", "head": {"kind": "classifier", "mean_std": True}},
            "verification": {"read": "prefix"},
        },
        "training": {"steps": 4},
        "context": {"join": 2},
    }
    metrics = train_run(read_recipe(merged(recipe, change)), workspace / "run")
    assert metrics["test"]["asr"]["wer"]["value"] >= 0


@pytest.mark.recipe
def test_a_vocabulary_of_another_run_is_refused(workspace, recipe, tiny_corpus):
    run = workspace / "run"
    train_run(read_recipe(merged(recipe, {"training": {"steps": 2}})), run)
    states = json.loads((run / "tasks.json").read_text())
    states["asr"]["characters"].reverse()
    (run / "tasks.json").write_text(json.dumps(states))
    with pytest.raises(RunError, match=r"tasks\.json .* is not what model\.safetensors"):
        list(predict_files(run, [tiny_corpus.parent / "s7-0.wav"], ["asr"]))


def test_a_text_longer_than_the_limit_stops_before_training(workspace, recipe):
    change = {"tasks": {"asr": {"head": {"kind": "text", "max_tokens": 5}}}}
    with pytest.raises(DataError, match="has 7 tokens, the limit is max_tokens=5; raise it"):
        train_run(read_recipe(merged(recipe, change)), workspace / "run")
    assert not (workspace / "run").exists()


@pytest.mark.recipe
def test_prompts_in_words_are_for_runs_trained_with_them(workspace, recipe, tiny_corpus):
    change = {
        "tasks": {"emotion": {"prompts": ["how do they feel", "name the mood"]}},
        "training": {"steps": 4},
    }
    train_run(read_recipe(merged(recipe, change)), workspace / "run")
    files = [tiny_corpus.parent / "s7-0.wav"]
    assert len(list(predict_files(workspace / "run", files, ["emotion"], "the mood please"))) == 1
    with pytest.raises(RunError, match=r"found asr; choose from: emotion"):
        list(predict_files(workspace / "run", files, ["asr"], "write it down"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": {"preset": "huge"}}, "context: preset.*(found 'huge')"),
        ({"context": {"lyers": 2}}, "context: lyers.*Did you mean 'layers'"),
        (
            {"context": {"interface": {"kind": "prompt_adptive"}}},
            "context.interface: unknown interface kind 'prompt_adptive'",
        ),
        ({"tasks": {"emotion": {"prompts": "feel"}}}, "tasks.emotion.prompts"),
    ],
)
def test_wrong_settings_of_a_context_are_named(recipe, change, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(merged(recipe, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "head 'text' writes for a prompted transformer.*add context"),
        ({"tasks": {"asr": {"read": "speech"}}}, "head 'text' reads the text it writes"),
        (
            {"tasks": {"asr": {"read": "prompt", "head": {"kind": "ctc"}}}},
            "head 'ctc' needs every frame; use read: speech",
        ),
        ({"context": TINY | {"heads": 5}}, "5 heads do not divide dim 32"),
        ({"context": TINY | {"interface": {"kind": "mhfa"}}}, "one vector for each utterance"),
        ({"context": TINY | {"interface": {"kind": "pca_concat"}}}, "is fitted before"),
    ],
)
def test_what_does_not_fit_a_context_is_refused_when_built(workspace, recipe, change, message):
    with pytest.raises(RecipeError, match=message):
        train_run(read_recipe(merged(recipe, change)), workspace / "run")
    assert not (workspace / "run").exists()


def test_state_0_is_no_layer_of_a_gated_encoder(recipe):
    made = read_recipe(recipe)
    assert made.fusion.drop_state_0
    specs = [StackSpec(13, 8, 50.0)]
    fusion = build.build_fusion(made, specs, ["asr"])
    assert len(fusion.interface.logits["asr"]) == 12
    kept = read_recipe(merged(recipe, {"fusion": {"drop_state_0": False}}))
    assert len(build.build_fusion(kept, specs, ["asr"]).interface.logits["asr"]) == 13


def test_a_gated_encoder_mixes_layers_of_one_scale_unless_asked(recipe):
    """Without layer norm a layer a hundred times as loud would be all that is heard."""
    made = read_recipe(recipe)
    assert made.fusion.normalize == made.context.normalize == "layer_norm"
    spec = StackSpec(3, 8, 50.0)
    layers = torch.randn(3, 1, 5, 8)
    louder = layers * torch.tensor([1.0, 1.0, 100.0]).reshape(3, 1, 1, 1)
    lengths = torch.tensor([5])

    def fused(change, given):
        fusion = build.build_fusion(read_recipe(merged(recipe, change)), [spec], ["asr"])
        return fusion([LayerStack(tuple(given), lengths, 50.0)], "asr").hidden

    assert torch.allclose(fused({}, layers), fused({}, louder), atol=1e-3)
    raw = {"fusion": {"normalize": "none"}}
    assert not torch.allclose(fused(raw, layers), fused(raw, louder), atol=1e-3)
    others = merged(recipe, {"fusion": {"interface": {"kind": "hconv"}}})
    assert read_recipe(others).fusion.normalize == "none"


def test_scalars_of_layers_learn_ten_times_as_fast_in_a_context_unless_asked(recipe):
    assert read_recipe(recipe).training.layer_rate == 10
    assert read_recipe(recipe, ["training.layer_rate=1"]).training.layer_rate == 1
    recipe.pop("training")
    assert read_recipe(recipe).training.layer_rate == 10
    alone = merged(recipe, {"tasks": {"asr": {"head": {"kind": "ctc"}}}, "context": None})
    assert read_recipe(alone).training.layer_rate == 1


def test_a_saved_recipe_means_what_it_meant_whatever_is_usual_now(recipe):
    """A run's own recipe.yaml has every setting, those of a time with other defaults too."""
    saved = read_recipe(recipe).model_dump(mode="json")
    saved["fusion"]["normalize"], saved["training"]["layer_rate"] = "none", 1.0
    again = read_recipe(saved)
    assert again.fusion.normalize == "none"
    assert again.training.layer_rate == 1
    assert again.model_dump(mode="json") == saved


def test_the_papers_size_has_the_parameters_of_twelve_plain_blocks(recipe):
    """12 blocks of 4 D^2 for attention and 8 D^2 for the feed-forward, within one percent."""
    from speechfuse.context.prompted_transformer import PromptedTransformer

    with torch.device("meta"):
        context = PromptedTransformer(
            1024, 50.0, tasks=["asr"], text_sizes={"asr": 5000}, prompts={}, preset="paper"
        )
    blocks = sum(p.numel() for p in context.blocks.parameters())
    assert abs(blocks / (12 * 12 * 1024**2) - 1) < 0.01
