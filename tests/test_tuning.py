"""Tuned upstreams: what is asked for moves and nothing else, and a run keeps only that."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from architectures import ARCHITECTURES
from speechfuse.analyse import layer_use
from speechfuse.audio import pad_clips
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import RecipeError, RunError
from speechfuse.evaluate import evaluate_again, open_run
from speechfuse.predict import predict_files
from speechfuse.recipe import TrainingRecipe, merged
from speechfuse.train import train_run
from speechfuse.tuning import trained_parameters, tune
from speechfuse.upstreams.huggingface import HuggingFace

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

DEPTH = 3  # blocks of every architecture here
CLIPS = (9000, 5000, 6001)  # samples
WAYS = {
    "top": {"train_upstream": "top_1"},
    "all": {"train_upstream": "all"},
    "lora": {"lora": {"rank": 2}},
}


def wav(sizes=CLIPS):
    generator = torch.Generator().manual_seed(1)
    return pad_clips([0.1 * torch.randn(size, generator=generator) for size in sizes])


def encoder_of(folder, **options):
    if "whisper" in folder.name:
        options["whisper_pad"] = 0.5
    return HuggingFace(source=str(folder), **options)


def adapters(name):
    return {"targets": ["linear_q", "linear_v"] if name.startswith("w2v-bert") else ["q_proj", "v_proj"]}  # noqa: E501  # fmt: skip


def tuned(folder, **training):
    part = encoder_of(folder)
    tune({"ssl": part}, TrainingRecipe.model_validate(training), seed=0)
    return part


def moved_by_training(part, steps=1):
    """Names of parameters that some steps on every layer change; all are given to the optimiser."""
    before = {name: weight.detach().clone() for name, weight in part.named_parameters()}
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-3, weight_decay=0.1)
    nn.ModuleList([part]).train()
    for _ in range(steps):
        layers = part(wav()).layers
        loss = sum((layer * torch.ones_like(layer).cumsum(-1).cos()).sum() for layer in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name for name, weight in part.named_parameters() if not torch.equal(weight, before[name])}  # noqa: E501  # fmt: skip


def names_of_blocks(part, count):
    """Parameters in the upper `count` blocks, by their numbers."""
    names = [name for name, _ in part.named_parameters()]
    numbers = {name: re.search(r"model\.(?:encoder\.)?layers\.(\d+)\.", name) for name in names}
    return {name for name, found in numbers.items() if found and int(found[1]) >= DEPTH - count}


class TestWhatMoves:
    @pytest.mark.recipe
    @pytest.mark.parametrize("name", ARCHITECTURES)
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_upper_blocks_move_and_nothing_else(self, encoder, name, count):
        part = tuned(encoder(name), train_upstream=f"top_{count}")
        expected = names_of_blocks(part, count)
        assert len(expected) > 10 * count
        assert {n for n, p in part.named_parameters() if p.requires_grad} == expected
        assert moved_by_training(part) == expected

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_all_moves_everything_that_a_layer_reads(self, encoder, name):
        part = tuned(encoder(name), train_upstream="all")
        constants = {"states.model.masked_spec_embed"}
        if name == "whisper":
            constants.add("states.model.embed_positions.weight")
        expected = {n for n, _ in part.named_parameters()} - constants
        assert moved_by_training(part) == expected
        assert trained_parameters(part) == sum(part.get_parameter(n).numel() for n in expected)

    @pytest.mark.recipe
    @pytest.mark.parametrize("name", ARCHITECTURES)
    @pytest.mark.parametrize("which", ["top_1", "all"])
    def test_adapters_move_and_nothing_else(self, encoder, name, which):
        part = tuned(encoder(name), train_upstream=which, lora={"rank": 2, **adapters(name)})
        inside = names_of_blocks(part, DEPTH if which == "all" else 1)
        expected = {n for n in inside if ".lora_" in n}
        assert expected == {n for n, _ in part.named_parameters() if ".lora_" in n}
        blocks = DEPTH if which == "all" else 1
        assert trained_parameters(part) == blocks * 2 * 2 * (
            32 + 32
        )  # two Linears, rank 2, width 32
        assert moved_by_training(part, steps=2) == expected  # what is behind zeros moves second

    @pytest.mark.parametrize("name", ["hubert", "whisper", "w2v-bert"])
    def test_adapters_change_nothing_at_first(self, encoder, name):
        part = tuned(encoder(name), lora=adapters(name))
        with torch.no_grad():
            pairs = zip(part(wav()).layers, encoder_of(encoder(name))(wav()).layers, strict=True)
        for a, b in pairs:  # a frozen one is computed in another order
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)

    def test_adapters_start_from_the_seed(self, encoder):
        def start(seed):
            part = encoder_of(encoder("hubert"))
            tune({"ssl": part}, TrainingRecipe(lora={}), seed)
            return part.state_dict()

        one, same, other = start(1), start(1), start(2)
        assert all(torch.equal(one[n], same[n]) for n in one)
        assert not all(torch.equal(one[n], other[n]) for n in one)

    def test_a_frozen_one_has_no_gradient_whoever_asks(self, encoder):
        part = encoder_of(encoder("hubert"))
        part.load()
        part.requires_grad_(True).train()
        assert not any(layer.requires_grad for layer in part(wav()).layers)

    @pytest.mark.recipe
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_alone_equals_in_a_batch_while_it_is_trained(self, encoder, name):
        part = tuned(encoder(name), train_upstream="all")
        moved_by_training(part)
        together = part.train()(wav())
        assert all(layer.requires_grad for layer in together.layers)
        for row, size in enumerate(CLIPS):
            alone = part(pad_clips([wav().samples[row, :size]]))
            frames = int(alone.lengths[0])
            assert frames == int(together.lengths[row])
            for one, many in zip(alone.layers, together.layers, strict=True):
                torch.testing.assert_close(one[0], many[row, :frames], atol=3e-5, rtol=1e-4)

    @pytest.mark.parametrize("name", ["hubert", "wavlm", "whisper", "w2v-bert"])
    def test_nothing_is_dropped(self, encoder, name):
        part = tuned(encoder(name), train_upstream="all").train()
        layers = zip(part(wav()).layers, part(wav()).layers, strict=True)
        assert all(torch.equal(a, b) for a, b in layers)


class TestState:
    @pytest.mark.recipe
    @pytest.mark.parametrize("name", ["hubert", "hubert batch norm", "whisper"])
    @pytest.mark.parametrize("way", WAYS)
    def test_what_moved_is_kept_and_nothing_else(self, encoder, name, way):
        part = tuned(encoder(name), **WAYS[way])
        moved = moved_by_training(part, steps=2)
        holder = nn.ModuleList([part])
        state = {key: value.clone() for key, value in holder.state_dict().items()}
        assert set(state) == {f"0.{name}" for name in moved}
        fresh = tuned(encoder(name), **WAYS[way])
        nn.ModuleList([fresh]).load_state_dict(state)
        layers = zip(part(wav()).layers, fresh(wav()).layers, strict=True)
        assert all(torch.equal(a, b) for a, b in layers)

    def test_one_that_lacks_is_missed(self, encoder):
        part = tuned(encoder("hubert"), train_upstream="top_1")
        state = dict(part.state_dict())
        lost = next(iter(state))
        del state[lost]
        with pytest.raises(RuntimeError, match=re.escape(lost)):
            part.load_state_dict(state)
        with pytest.raises(RuntimeError, match="nobody"):
            part.load_state_dict(part.state_dict() | {"nobody": torch.zeros(1)})


class TestErrors:
    def test_more_blocks_than_there_are(self, encoder):
        with pytest.raises(RecipeError, match="'top_4' of upstream 'ssl', which has 3 blocks; use top_3"):  # noqa: E501  # fmt: skip
            tuned(encoder("hubert"), train_upstream="top_4")

    def test_no_such_linear(self, encoder):
        with pytest.raises(RecipeError, match=r"no Linear 'q_porj' in .* Did you mean 'q_proj'"):
            tuned(encoder("hubert"), lora={"targets": ["q_porj", "v_proj"]})

    def test_each_upstream_needs_a_target(self, encoder):
        parts = {name: encoder_of(encoder(name)) for name in ("hubert", "w2v-bert")}
        message = "none of q_proj, v_proj is in the blocks of upstream 'w2v-bert'; .* linear_q"
        with pytest.raises(RecipeError, match=message):
            tune(parts, TrainingRecipe(lora={}), 0)
        both = {"targets": ["q_proj", "linear_q"]}
        tune(parts, TrainingRecipe(lora=both), 0)
        assert all(trained_parameters(part) for part in parts.values())

    def test_without_peft_it_says_what_to_install(self, encoder, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(RecipeError, match=r"pip install 'speechfuse\[lora\]'"):
            tuned(encoder("hubert"), lora={})


@pytest.fixture
def recipe_of(tone_recipe, encoder):
    """A recipe with a tuned HuBERT of random weights and, if asked, a filterbank beside it."""

    def make(way, beside=False, **training):
        upstreams = {"ssl": {"kind": "huggingface", "source": str(encoder("hubert"))}}
        if beside:
            upstreams = tone_recipe["upstreams"] | upstreams
        rate = {"upstream_learning_rate": 1e-3}
        change = {"training": {**WAYS[way], **rate, **training}}
        base = tone_recipe | {"upstreams": upstreams}
        if beside:
            change["fusion"] = {"merge": {"kind": "concat"}}
        return merged(base, change)

    return make


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.recipe
class TestRuns:
    @pytest.mark.parametrize("way", WAYS)
    def test_a_run_is_trained_kept_and_read_again(
        self, workspace, recipe_of, encoder, tiny_corpus, way
    ):
        folder = workspace / "run"
        metrics = train_run(read_recipe(recipe_of(way, steps=6)), folder)
        assert not (workspace / "stores").exists()
        start = tuned(encoder("hubert"), **WAYS[way]).state_dict()
        kept = {n.removeprefix("upstreams.0."): w for n, w in weights(folder).items()}
        assert {n for n in kept if n.startswith("states.")} == set(start)
        assert any(not torch.equal(kept[n], w) for n, w in start.items())
        for name in ("best", "last"):
            path = folder / "checkpoints" / f"{name}.ckpt"
            state = torch.load(path, weights_only=True)["state_dict"]
            assert {n.removeprefix("model.") for n in state} == set(weights(folder))
        said = json.loads((folder / "upstreams.json").read_text())["ssl"]["trained"]
        assert said == {"top": "top_1", "all": "all", "lora": "all, LoRA of rank 2 and alpha 16 on q_proj, v_proj"}[way]  # noqa: E501  # fmt: skip
        assert "\npeft " in (folder / "versions.txt").read_text()
        own = sum(w.numel() for n, w in weights(folder).items() if ".emotion." in n)
        in_it = sum(w.numel() for w in start.values())
        assert metrics["parameters"]["emotion"] == own + in_it
        (folder / "predictions" / "test_asr.tsv").unlink()
        assert evaluate_again(folder) == metrics
        files = [tiny_corpus.parent / f"s7-{i}.wav" for i in range(3)]
        rows = {row["id"]: row["prediction"] for row in Run(folder).table("test", "asr")}
        lines = [line.split("\t") for line in predict_files(folder, files, ["asr"])]
        assert [answer for *_, answer in lines] == [rows[f.stem] for f in files]
        _, model, tasks, inputs = open_run(folder)
        uses = layer_use(model, tasks, inputs, {"ssl": range(4)})
        assert {use.task for use in uses} == set(tasks)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("stop", [3, 5])
    def test_a_stopped_run_goes_on_to_the_same_weights(self, workspace, recipe_of, way, stop):
        recipe = read_recipe(recipe_of(way, steps=6, evaluate_every=2))
        train_run(recipe, workspace / "whole")

        class Stop(Exception):
            pass

        def interrupt(what, done, total):
            if what == "training steps" and done == stop:
                raise Stop

        with pytest.raises(Stop):
            train_run(recipe, workspace / "parts", interrupt)
        steps = []
        train_run(recipe, workspace / "parts", lambda w, d, n: steps.append((w, d)))
        assert min(d for w, d in steps if w == "training steps") == stop
        whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole)

    def test_ctrl_c_keeps_the_step(self, workspace, recipe_of):
        """With a filterbank from its store, gradients of two batches, and crops."""
        change = recipe_of("lora", beside=True, steps=6, evaluate_every=4, accumulate=2)
        change["tasks"]["emotion"] |= {"crop_seconds": 0.2}
        recipe = read_recipe(change)
        train_run(recipe, workspace / "whole")
        assert len([one for one in (workspace / "stores").iterdir() if one.is_dir()]) == 1

        def interrupt(what, done, total):
            if what == "training steps" and done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, workspace / "parts", interrupt)
        steps = []
        train_run(recipe, workspace / "parts", lambda w, d, n: steps.append((w, d)))
        done = [d for w, d in steps if w == "training steps"]
        assert done[:2] == [3, 4]  # after the fourth step's first batch, and its second
        whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
        assert all(torch.equal(whole[k], parts[k]) for k in whole)

    @pytest.mark.parametrize("way", WAYS)
    def test_fine_tuning_lowers_the_loss(self, workspace, recipe_of, way):
        """Fusion and head all but rest; the encoder alone learns to tell calm from loud."""
        rate = 5e-2 if way == "lora" else 1e-2
        recipe = recipe_of(way, steps=40, learning_rate=1e-9, upstream_learning_rate=rate)
        recipe["tasks"] = {"emotion": recipe["tasks"]["emotion"]}
        train_run(read_recipe(recipe), workspace / "run")
        losses = [v for _, n, v in Run(workspace / "run").log() if n == "train/emotion/loss"]
        assert len(losses) == 40
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

    def test_mixed_precision_trains(self, workspace, recipe_of):
        recipe = recipe_of("all", steps=4, precision="bf16-mixed")
        train_run(read_recipe(recipe), workspace / "run")
        assert all(w.isfinite().all() for w in weights(workspace / "run").values())

    def test_a_run_of_other_adapters_is_refused(self, workspace, recipe_of):
        train_run(read_recipe(recipe_of("lora", steps=2)), workspace / "run")
        other = read_recipe(recipe_of("lora", steps=2), ["training.lora.rank=4"])
        with pytest.raises(RunError, match=r"differs in training\.lora\.rank"):
            train_run(other, workspace / "run")

    def test_bad_audio_is_named_before_any_training(self, workspace, recipe_of, tiny_corpus):
        from speechfuse.errors import DataError

        rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
        rows = [row | {"audio": str(tiny_corpus.parent / row["audio"])} for row in rows]
        rows[-1] |= {"start": 0.0, "duration": 0.02}  # of the test split
        Path("short.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        recipe = recipe_of("top")
        recipe["tasks"] = {"emotion": recipe["tasks"]["emotion"] | {"corpus": "short.jsonl"}}
        with pytest.raises(DataError, match=r"s7-7 .* has 320 samples"):
            train_run(read_recipe(recipe), workspace / "run")
        assert not (workspace / "run").exists()
