"""The main job on tones: train, stop, go on, evaluate again, predict."""

import json
import os
import re
import resource
import shutil
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuzzing import contents
from speechfuse import build
from speechfuse.build import read_recipe
from speechfuse.callbacks import Events, LongCSV
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RecipeError, RunError, ShapeError, UpstreamError
from speechfuse.evaluate import evaluate_again, evidence_of
from speechfuse.extract import fill_stores
from speechfuse.fit import fit
from speechfuse.metrics import with_interval
from speechfuse.predict import predict_files
from speechfuse.recipe import merged
from speechfuse.steps import FusionTraining
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from speechfuse.types import Utterance


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_folder_holds_what_it_should(workspace, tone_recipe):
    told = []
    metrics = train_run(read_recipe(tone_recipe), workspace / "run", lambda *a: told.append(a))
    run = Run(workspace / "run")
    assert set(metrics["test"]) == {"asr", "emotion", "verification"}
    assert set(metrics["test"]["asr"]["wer"]) == {"value", "low", "high", "speakers"}
    assert metrics["test"]["emotion"]["accuracy"]["speakers"] == 2
    assert run.recipe() == read_recipe(tone_recipe)
    names = {p.name for p in run.folder.iterdir()}
    assert names >= {
        "recipe.yaml",
        "upstreams.json",
        "model.safetensors",
        "tasks.json",
        "metrics.json",
        "predictions",
        "checkpoints",
        "log.csv",
        "versions.txt",
    }
    assert any(name.startswith("events.") for name in names)
    assert "hparams.yaml" not in names
    assert len({path.stat().st_mode for path in run.folder.iterdir() if path.is_file()}) == 1
    assert {p.name for p in (run.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert "torch 2." in (run.folder / "versions.txt").read_text()
    assert not any(name.startswith("upstream.") for name in weights(run.folder))
    logged = {name for _, name, _ in run.log()}
    assert {"dev/error", "dev/asr/wer", "dev/verification/eer", "train/asr/loss"} <= logged
    assert ("training steps", 12, 12) in told
    rows = run.table("test", "asr")
    assert set(rows[0]) == {"id", "speaker", "reference", "prediction"}
    kept = evidence_of(run, "test")
    for task, scores in kept.items():
        for metric, evidence in scores.items():
            assert with_interval(evidence).value == metrics["test"][task][metric]["value"]


def test_evaluate_gives_the_same_numbers_again(workspace, tone_recipe):
    metrics = train_run(read_recipe(tone_recipe), workspace / "run")
    (workspace / "run" / "predictions" / "test_asr.tsv").unlink()
    assert evaluate_again(workspace / "run") == metrics
    assert json.loads((workspace / "run" / "metrics.json").read_text()) == metrics


@pytest.mark.recipe
@pytest.mark.parametrize("head", [{}, {"kind": "text"}])
def test_another_beam_gives_what_a_run_of_it_gives_and_changes_no_file(
    workspace, tone_recipe, head
):
    """Trained in the same way with a beam of three; only the texts are scored again."""
    if head:
        tiny = {"preset": "tiny", "layers": 2, "dim": 32, "heads": 2, "join": 4}
        tone_recipe = merged(tone_recipe, {"fusion": {"per_task": False}, "context": tiny})
    change = {"training": {"steps": 30, "keep": "last"}, "tasks": {"asr": {"head": head}}}
    own = merged(tone_recipe, change)
    train_run(read_recipe(own), workspace / "greedy")
    wide = {"beam_size": 3} | ({} if head else {"search": "beam"})
    recipe = merged(own, {"tasks": {"asr": {"head": wide}}})
    asked = train_run(read_recipe(recipe), workspace / "beam")
    kept = contents(workspace / "greedy")
    found = evaluate_again(workspace / "greedy", beam_size=3)
    assert found["test"] == {"asr": asked["test"]["asr"]}
    assert found["dev"] == {"asr": asked["dev"]["asr"]}
    assert found["beam_size"] == 3
    tables = [Run(workspace / name).table("test", "asr") for name in ("greedy", "beam")]
    assert tables[0] != tables[1]
    assert contents(workspace / "greedy") == kept
    greedy = evaluate_again(workspace / "beam", beam_size=1)
    assert greedy["test"]["asr"] == Run(workspace / "greedy").metrics()["test"]["asr"]


@pytest.mark.recipe
def test_a_folder_in_which_a_run_is_trained_is_refused(workspace, tone_recipe):
    """Until it ends, however it ends; the run at work is not disturbed."""
    recipe = read_recipe(tone_recipe)
    train_run(recipe, workspace / "alone")

    def begin_again(what, done, total):
        if what == "training steps" and done == 5:
            with pytest.raises(RunError, match="run is being trained by another process; wait"):
                train_run(recipe, workspace / "run")

    def fail(what, done, total):
        begin_again(what, done, total)
        if what == "training steps" and done == 7:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_run(recipe, workspace / "run", fail)
    assert (
        train_run(recipe, workspace / "run")["test"] == (Run(workspace / "alone").metrics()["test"])
    )


@pytest.mark.recipe
def test_a_run_that_searches_no_text_refuses_a_beam(workspace, tone_recipe):
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    tone_recipe["training"].pop("interleave", None)
    train_run(read_recipe(tone_recipe), workspace / "run")
    with pytest.raises(RunError, match=r"no task that searches for a text .emotion.; leave"):
        evaluate_again(workspace / "run", beam_size=3)


@pytest.mark.recipe
def test_of_no_steps_a_model_is_scored_as_it_starts(workspace, tone_recipe):
    recipe = read_recipe(tone_recipe, ["training.steps=0"])
    found = train_run(recipe, workspace / "run")
    data = load_tasks(recipe)
    tasks = {name: one.task for name, one in data.items()}
    started = build.build_model(recipe, build.stack_specs(recipe), tasks).state_dict()
    kept = weights(workspace / "run")
    assert all(torch.equal(tensor, started[name]) for name, tensor in kept.items())
    assert evaluate_again(workspace / "run")["test"] == found["test"]
    assert Run(workspace / "run").log() == []


def test_the_same_recipe_gives_the_same_run(workspace, tone_recipe):
    recipe = read_recipe(tone_recipe)
    one, two = (train_run(recipe, workspace / name) for name in ("one", "two"))
    assert one["test"] == two["test"]
    a, b = weights(workspace / "one"), weights(workspace / "two")
    assert all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    pass


def assert_same_log(parts, whole):
    """No step twice; a loss may lack, which Lightning repeats until the task has its next batch."""
    parts, whole = Run(parts).log(), Run(whole).log()
    assert len({(step, name) for step, name, _ in parts}) == len(parts)
    assert set(parts) <= set(whole)
    assert {step for step, *_ in parts} == {step for step, *_ in whole}
    assert [row for row in parts if row[1][:4] == "dev/"] == [
        r for r in whole if r[1][:4] == "dev/"
    ]


@pytest.mark.recipe
@pytest.mark.parametrize("stop", [3, 5, 8, 9])
def test_a_stopped_run_goes_on_to_the_same_weights(workspace, tone_recipe, stop):
    """With dropout, in mid-epoch: batches, seeds and optimiser go on where they were."""
    change = {
        "training": {"steps": 12, "evaluate_every": 4},
        "tasks": {"asr": {"head": {"kind": "ctc", "project": 8, "lstm_dim": 8, "dropout": 0.3}}},
    }
    recipe = read_recipe(merged(tone_recipe, change))
    train_run(recipe, workspace / "whole")

    def interrupt(what, done, total):
        if what == "training steps" and done == stop:
            raise Stop

    with pytest.raises(Stop):
        train_run(recipe, workspace / "parts", interrupt)
    assert not Run(workspace / "parts").finished
    steps = []
    train_run(recipe, workspace / "parts", lambda w, d, n: steps.append((w, d)))
    first = min(d for w, d in steps if w == "training steps")
    assert first == 4 * ((stop - 1) // 4) + 1  # after the last development score
    whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert_same_log(workspace / "parts", workspace / "whole")


@pytest.mark.recipe
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stop_within_a_step_of_several_batches_waits_for_its_end(workspace, tone_recipe, stop):
    """With dropout, crops, and the mean of the best weights, all as without a stop."""
    dropout = {"kind": "classifier", "dropout": 0.3}
    change = {
        "training": {"steps": 6, "evaluate_every": 2, "accumulate": 3, "average": 2},
        "tasks": {"emotion": {"head": dropout, "crop_seconds": 0.2, "batch_seconds": 2}},
    }
    tone_recipe["tasks"].pop("asr")
    recipe = read_recipe(merged(tone_recipe, change))
    train_run(recipe, workspace / "whole")
    told = []

    def interrupt(what, done, total):
        told.append((what, done))
        if told.count(("training steps", stop)) == 2:  # the step before it took the third batch
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, workspace / "parts", interrupt)
    steps = []
    train_run(recipe, workspace / "parts", lambda w, d, n: steps.append((w, d)))
    assert min(d for w, d in steps if w == "training steps") == stop + 1
    whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert len(list((workspace / "parts" / "checkpoints").iterdir())) == 3


def test_accumulated_batches_are_one_step_of_their_mean(workspace, tone_recipe):
    """Two batches of four against one of the same eight, with a plain gradient step."""
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    moved = {}
    for name, together in (("one", 1), ("two", 2)):
        training = {"accumulate": together, "batch_utterances": 8 // together, "steps": 1}
        recipe = read_recipe(merged(tone_recipe, {"training": {**training, "keep": "last"}}))
        tasks = load_tasks(recipe)
        stores = fill_stores(recipe, tasks)
        kept = tasks["emotion"].splits | {"train": tasks["emotion"].splits["train"][:8]}
        data = {"emotion": replace(tasks["emotion"], splits=kept)}
        model = build.build_model(
            recipe, build.stack_specs(recipe), {"emotion": data["emotion"].task}
        )
        before = {k: v.clone() for k, v in model.state_dict().items()}
        run = Run(workspace / name)
        run.folder.mkdir()
        fit(recipe, model, data, stores, run, None)
        moved[name] = {k: v - before[k] for k, v in model.state_dict().items()}
    for key, step in moved["one"].items():
        torch.testing.assert_close(moved["two"][key], step, rtol=1e-2, atol=1e-4)
    assert moved["one"]["heads.emotion.linear.weight"].abs().max() > 1e-3


def test_weights_may_be_the_mean_of_the_best(workspace, tone_recipe):
    change = {"steps": 9, "evaluate_every": 3, "average": 2}
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    train_run(read_recipe(merged(tone_recipe, {"training": change})), workspace / "run")
    errors = {s: v for s, name, v in Run(workspace / "run").log() if name == "dev/error"}
    best = sorted(errors, key=errors.__getitem__)[:2]
    folder = workspace / "run" / "checkpoints"
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) == {"last.ckpt", *(f"best-step={step + 1}.ckpt" for step in best)}
    states = [
        torch.load(path, weights_only=True)["state_dict"]
        for name, path in files.items()
        if name != "last.ckpt"
    ]
    for name, found in weights(workspace / "run").items():
        one, two = (state[f"model.{name}"] for state in states)
        assert not torch.equal(one, two) or name.startswith("fusions."), name
        torch.testing.assert_close(found, (one + two) / 2)


def test_short_utterances_are_not_learned_from(workspace, tone_recipe, tiny_corpus):
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    rows = [row | {"audio": str(tiny_corpus.parent / row["audio"])} for row in rows]
    for row in rows[::2]:
        row |= {"start": 0.0, "duration": 0.3}
    manifest = workspace / "some.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    task = tone_recipe["tasks"]["verification"] | {"corpus": str(manifest)}
    recipe = tone_recipe | {"tasks": {"verification": task}}
    sizes = [
        {
            split: len(members)
            for split, members in load_tasks(read_recipe(recipe, change))[
                "verification"
            ].splits.items()
        }
        for change in ([], ["tasks.verification.min_seconds=0.35"])
    ]
    assert sizes == [{"train": 32, "dev": 16, "test": 16}, {"train": 16, "dev": 16, "test": 16}]
    with pytest.raises(DataError, match="no training utterance has 9 s; lower min_seconds"):
        load_tasks(read_recipe(recipe, ["tasks.verification.min_seconds=9"]))


def test_texts_are_not_learned_from_crops(workspace, tone_recipe):
    recipe = read_recipe(tone_recipe, ["tasks.asr.crop_seconds=0.2"])
    with pytest.raises(RecipeError, match="'asr': crop_seconds would cut the speech"):
        train_run(recipe, workspace / "run")


@pytest.mark.recipe
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [1, 4, 6, 10])
def test_ctrl_c_ends_the_step_and_the_run_goes_on_from_there(
    workspace, tone_recipe, stop, number, caplog
):
    """Before the first score, at one, between two and in the last step, which is not scored."""
    change = {"training": {"steps": 10, "evaluate_every": 4}}
    recipe = read_recipe(merged(tone_recipe, change))
    train_run(recipe, workspace / "whole")

    def interrupt(what, done, total):
        if what == "training steps" and done == stop:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, workspace / "parts", interrupt)
    assert "stopping after this step" in caplog.text
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert not Run(workspace / "parts").finished
    steps = []
    train_run(recipe, workspace / "parts", lambda w, d, n: steps.append((w, d)))
    assert min(d for w, d in steps if w == "training steps") == (stop + 1 if stop < 10 else 9)
    whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert_same_log(workspace / "parts", workspace / "whole")


@pytest.mark.recipe
@pytest.mark.parametrize(
    "turns",
    [
        {"interleave": "proportional"},
        {"interleave": {"temperature": 2}},
        {"interleave": {"loss_aware": 2}},
        {"interleave": {"emotion": 2, "verification": 1}, "turns": "even"},
    ],
)
def test_a_run_goes_on_with_the_turns_of_its_schedule(workspace, tone_recipe, turns):
    """After Ctrl-C in the midst and within a step of two batches; the losses of before count."""
    dropout = {"kind": "classifier", "dropout": 0.3}
    training = {"steps": 24, "evaluate_every": 10, "accumulate": 2} | turns
    tone_recipe["tasks"].pop("asr")
    change = {"training": training, "tasks": {"emotion": {"head": dropout}}}
    recipe = read_recipe(merged(tone_recipe, change))
    train_run(recipe, workspace / "whole")
    for stop in (8, 17):

        def interrupt(what, done, total, stop=stop):
            if what == "training steps" and done == stop:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, workspace / "parts", interrupt)
    train_run(recipe, workspace / "parts")
    whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert_same_log(workspace / "parts", workspace / "whole")
    shares = [value for _, name, value in Run(workspace / "whole").log() if name.endswith("/share")]
    follows = isinstance(turns["interleave"], dict) and "loss_aware" in turns["interleave"]
    assert bool(shares) == follows
    assert sum(shares) == pytest.approx(len(shares) / 2)  # of two tasks


@pytest.mark.recipe
@pytest.mark.parametrize("stop", [6, 12])
def test_a_stopped_run_goes_on_in_another_folder(workspace, tone_recipe, stop):
    """The best score, here the first, is still known there, and its weights are found."""
    recipe = read_recipe(
        merged(tone_recipe, {"seed": 0, "training": {"steps": 12, "evaluate_every": 4}})
    )
    train_run(recipe, workspace / "whole")
    errors = [error for _, name, error in Run(workspace / "whole").log() if name == "dev/error"]
    assert errors[0] < min(errors[1:])

    def interrupt(what, done, total):
        if what == "training steps" and done == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, workspace / "here", interrupt)
    (workspace / "here").rename(workspace / "there")
    train_run(recipe, workspace / "there")
    whole, parts = weights(workspace / "whole"), weights(workspace / "there")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


@contextmanager
def no_file_beyond(size):
    """The system's own limit: a write ends in the midst of a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.recipe
def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(workspace, tone_recipe):
    """At the second of three scores; then there is room again."""
    change = {"training": {"steps": 12, "evaluate_every": 4, "keep": "last"}}
    recipe = read_recipe(merged(tone_recipe, change))
    train_run(recipe, workspace / "whole")
    with ExitStack() as limited:

        def fill_disk(what, done, total):
            if (what, done) == ("training steps", 6):
                (workspace / "first.ckpt").write_bytes(last.read_bytes())
                limited.enter_context(no_file_beyond(4096))

        last = workspace / "parts" / "checkpoints" / "last.ckpt"
        with pytest.raises(RunError, match=r"cannot write .*\.ckpt \(File too large\); .*goes on"):
            train_run(recipe, workspace / "parts", fill_disk)
    assert last.read_bytes() == (workspace / "first.ckpt").read_bytes()
    assert not [*last.parent.glob(".*")]
    steps = []
    train_run(recipe, workspace / "parts", lambda w, d, n: steps.append((w, d)))
    assert min(d for w, d in steps if w == "training steps") == 5
    whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert_same_log(workspace / "parts", workspace / "whole")


def test_a_log_or_metrics_that_do_not_fit_stay_as_they_were(tmp_path):
    log, run = LongCSV(tmp_path / "log.csv"), Run(tmp_path)
    log.log_metrics({"loss": 1.5}, 1)
    run.save_metrics({"one": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, write in (
        ("log.csv", lambda: log.log_metrics({"loss": 2.5, "other": 3.5}, 2)),
        ("metrics.json", lambda: run.save_metrics({"one": 2, "two": "longer"})),
        ("test_asr.tsv", lambda: run.save_table("test", "asr", [{"reference": "x" * 99}])),
    ):
        size = (tmp_path / name).stat().st_size if name in before else 0
        with no_file_beyond(size + 5), pytest.raises(RunError, match=rf"cannot write .*{name}"):
            write()
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not [*(tmp_path / "predictions").iterdir()]
    log.log_metrics({"loss": 2.5}, 2)
    assert run.log() == [(1, "loss", 1.5), (2, "loss", 2.5)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_that_do_not_fit_are_an_error_and_no_wait_for_ever(tmp_path):
    events = Events(tmp_path, "", "")

    def train():
        for step in range(1000):
            events.log_metrics({"loss": 1.0}, step)
            time.sleep(0.002)

    with no_file_beyond(100), pytest.raises(RunError, match="cannot write TensorBoard's events"):
        train()


def test_a_second_ctrl_c_does_not_wait(workspace, tone_recipe):
    def insist(what, done, total):
        if what == "training steps":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not stopped at once")

    with pytest.raises(KeyboardInterrupt):
        train_run(read_recipe(tone_recipe), workspace / "run", insist)
    assert not (workspace / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.recipe
def test_a_finished_run_is_not_run_again(workspace, tone_recipe):
    recipe = read_recipe(tone_recipe)
    metrics = train_run(recipe, workspace / "run")
    told = []
    assert train_run(recipe, workspace / "run", lambda *a: told.append(a)) == metrics
    assert told == []


def test_a_run_folder_of_another_recipe_is_refused(workspace, tone_recipe):
    train_run(read_recipe(tone_recipe), workspace / "run")
    before = weights(workspace / "run")
    other = read_recipe(tone_recipe, ["training.learning_rate=0.5", "seed=9"])
    with pytest.raises(RunError, match=r"differs in seed, training\.learning_rate"):
        train_run(other, workspace / "run")
    after = weights(workspace / "run")
    assert all(torch.equal(before[k], after[k]) for k in before)
    moved = read_recipe(tone_recipe, ["store.folder=elsewhere", "training.devices=2"])
    train_run(moved, workspace / "run")  # where layers are kept does not matter, nor who trains


@pytest.mark.recipe
def test_a_changed_corpus_is_noticed(workspace, tone_recipe, tiny_corpus):
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    manifest = workspace / "manifest.jsonl"

    def write(rows):
        here = tiny_corpus.parent
        lines = [json.dumps(row | {"audio": str(here / row["audio"])}) for row in rows]
        manifest.write_text("\n".join(lines))

    write(rows)
    recipe = read_recipe(merged(tone_recipe, {"tasks": {"asr": {"corpus": str(manifest)}}}))
    train_run(recipe, workspace / "run")
    rows[-1]["text"] = "low low low"  # of the test split
    write(rows)
    with pytest.raises(RunError, match=r"made with other data: asr\.test changed since"):
        evaluate_again(workspace / "run")


@pytest.mark.recipe
def test_stored_layers_are_not_computed_again(workspace, tone_recipe):
    train_run(read_recipe(tone_recipe), workspace / "one")
    told = []
    other = read_recipe(tone_recipe, ["fusion.interface.kind=hconv"])
    train_run(other, workspace / "two", lambda w, d, n: told.append(w))
    assert not any(w.startswith("layers of") for w in told)


HARMONIFUSE = {
    "fusion": {"per_task": False, "interface": {"kind": "gated_encoder"}},
    "context": {"layers": 2, "dim": 16, "heads": 2, "join": 2},
    "tasks": {"asr": {"head": {"kind": "text"}}},
}


@pytest.mark.recipe
@pytest.mark.parametrize("change", [{"fusion": {"interface": {"kind": "hconv"}}}, HARMONIFUSE])
def test_an_absent_task_rests(workspace, tone_recipe, monkeypatch, change):
    """In a step of another task its parameters stay, with momentum and decay of earlier steps."""
    before = []
    step = FusionTraining.training_step

    def watched(module, batch, number):
        weights = {name: p.detach().clone() for name, p in module.model.named_parameters()}
        before.append((batch.task, weights))
        return step(module, batch, number)

    monkeypatch.setattr(FusionTraining, "training_step", watched)
    tone_recipe["training"]["interleave"] = {"asr": 1, "emotion": 1, "verification": 0}
    overrides = ["training.weight_decay=0.5", "training.steps=16"]
    train_run(read_recipe(merged(tone_recipe, change), overrides), workspace / "run")
    tasks = [task for task, _ in before]
    assert ("asr", "emotion", "emotion", "asr") in zip(
        tasks, tasks[1:], tasks[2:], tasks[3:], strict=False
    )
    for (task, one), (_, two) in pairwise(before):
        moved = {name for name in one if not torch.equal(one[name], two[name])}
        assert {part for name in moved for part in name.split(".")} & set(tasks) == {task}


@pytest.mark.recipe
def test_a_task_starts_alike_alone_and_among_others(tone_recipe):
    def start(*names):
        tasks = {n: t for n, t in tone_recipe["tasks"].items() if n in names}
        recipe = read_recipe({**tone_recipe, "tasks": tasks}, ["fusion.interface.kind=hconv"])
        parts = {n: build.build_task(n, entry) for n, entry in recipe.tasks.items()}
        for part in parts.values():
            part.fit([Utterance("a", Path("a.wav"), text="abc", speaker="s", emotion="calm")])
        return build.build_model(recipe, build.stack_specs(recipe), parts).state_dict()

    alone, among = start("emotion"), start("asr", "emotion", "verification")
    for name, weight in alone.items():
        assert torch.equal(weight, among[name]), name


@pytest.mark.recipe
def test_one_fusion_may_serve_all_tasks(workspace, tone_recipe):
    recipe = read_recipe(tone_recipe, ["fusion.per_task=false", "fusion.interface.kind=hconv"])
    train_run(recipe, workspace / "run")
    shared = {n for n in weights(workspace / "run") if n.startswith("fusions.")}
    assert {n.split(".")[1] for n in shared} == {"all_tasks"}


@pytest.mark.recipe
def test_predict_answers_for_files(workspace, tone_recipe, tiny_corpus):
    train_run(read_recipe(tone_recipe), workspace / "run")
    files = [tiny_corpus.parent / f"s7-{i}.wav" for i in range(2)]
    lines = list(predict_files(workspace / "run", files))
    kept = {row["id"]: row["prediction"] for row in Run(workspace / "run").table("test", "emotion")}
    assert [line.split("\t")[1] for line in lines[:4]] == ["asr", "emotion"] * 2
    assert [line.split("\t")[2] for line in lines[1:4:2]] == [kept["s7-0"], kept["s7-1"]]
    assert lines[4].split("\t")[2] == "verification"
    assert len(list(predict_files(workspace / "run", files, ["asr"]))) == 2
    with pytest.raises(RunError, match="Did you mean 'emotion'"):
        list(predict_files(workspace / "run", files, ["emotoin"]))
    with pytest.raises(RunError, match="verification compares files; give two or more"):
        list(predict_files(workspace / "run", files[:1], ["verification"]))
    assert len(list(predict_files(workspace / "run", files[:1]))) == 2


@pytest.mark.recipe
def test_noise_is_another_store_and_the_same_each_time(workspace, tone_recipe):
    noisy = merged(tone_recipe, {"tasks": {"emotion": {"noise_snr": 0}}})
    train_run(read_recipe(noisy), workspace / "one")
    shutil.rmtree(workspace / "stores")
    train_run(read_recipe(noisy), workspace / "two")
    a, b = weights(workspace / "one"), weights(workspace / "two")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert len(list((workspace / "stores").iterdir())) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.asr.split.test_speakers=[nobody]", "test speaker 'nobody' unknown"),
        ("tasks.emotion.labels=[calm, angry]", "emotion 'loud' is outside the label set"),
        ("tasks.asr.corpus=no-such-corpus", "no corpus 'no-such-corpus'"),
        ("tasks.language={kind: classification, label: language, corpus: CORPUS, head: {kind: classifier}}", "none of the 64 utterances"),  # noqa: E501
        ("upstreams.mel.frame_rate=5", "texts are longer than their frames"),
        ("store.budget_gb=0.0001", "store.budget_gb is 0.0001"),
    ],
)  # fmt: skip
def test_bad_data_stops_before_any_training_and_leaves_nothing(
    workspace, tone_recipe, tiny_corpus, override, message
):
    recipe = read_recipe(tone_recipe, [override.replace("CORPUS", str(tiny_corpus))])
    with pytest.raises(DataError, match=message):
        train_run(recipe, workspace / "run")
    assert not (workspace / "run").exists()


def test_every_upstream_is_looked_at_before_one_is_run(workspace, tone_recipe, encoder, tmp_path):
    """Weights that are not there and the shortest clip: not after an hour with another encoder."""
    folder = tmp_path / "no-weights"
    shutil.copytree(encoder("hubert"), folder)
    (folder / "model.safetensors").unlink()
    ssl = f"upstreams.ssl={{kind: huggingface, source: {folder}}}"
    told = []
    with pytest.raises(UpstreamError, match=r"has no \*\.safetensors"):
        train_run(
            read_recipe(tone_recipe, [ssl, "fusion.merge.kind=concat"]),
            workspace / "run",
            lambda what, *_: told.append(what),
        )
    slow = "upstreams.slow={kind: filterbank, frame_rate: 1}"  # half a second at least
    with pytest.raises(DataError, match="has 6400 samples at 16000 Hz, the upstream needs 8000"):
        train_run(
            read_recipe(tone_recipe, [slow, "fusion.merge.kind=concat"]),
            workspace / "run",
            lambda what, *_: told.append(what),
        )
    assert not any(what.startswith("layers of") for what in told)
    assert not (workspace / "run").exists()


WRONG_RATE = """
from speechfuse.upstreams.filterbank import Filterbank

class Late(Filterbank):
    def __init__(self):
        super().__init__(frame_rate=100.0)
        spec = type(self.plan.spec)(1, 80, 50.0)  # and gives twice as many
        self.plan = self.plan._replace(spec=spec)
"""


def test_upstreams_that_cannot_be_aligned_stop_before_any_training(workspace, tone_recipe):
    (workspace / "wrong_rate.py").write_text(WRONG_RATE)
    overrides = ["upstreams.late={kind: 'wrong_rate:Late'}", "fusion.merge.kind=concat"]
    with pytest.raises(ShapeError, match=r"upstreams mel, late cannot be aligned: .* 0\.400 s"):
        train_run(read_recipe(tone_recipe, overrides), workspace / "run")
    assert not (workspace / "run").exists()


@pytest.mark.recipe
def test_a_run_is_not_read_with_other_weights_of_its_upstream(
    workspace, tone_recipe, encoder, tmp_path, tiny_corpus
):
    folder = tmp_path / "encoder"
    shutil.copytree(encoder("hubert"), folder)
    tone_recipe["upstreams"] = {"ssl": {"kind": "huggingface", "source": str(folder)}}
    train_run(read_recipe(tone_recipe), workspace / "run")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v + 1 for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    message = r"made with another upstream 'ssl' \(differs in weights_sha256\); put it back"
    with pytest.raises(RunError, match=message):
        evaluate_again(workspace / "run")
    with pytest.raises(RunError, match=message):
        list(predict_files(workspace / "run", [tiny_corpus.parent / "s7-0.wav"]))


@pytest.mark.recipe
def test_a_later_commit_with_the_same_weights_is_the_same_upstream(
    workspace, tone_recipe, encoder, monkeypatch
):
    import huggingface_hub.constants

    cache = workspace / "models--org--tiny"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(workspace))
    (cache / "refs").mkdir(parents=True)
    tone_recipe["upstreams"] = {"ssl": {"kind": "huggingface", "source": "org/tiny"}}
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(encoder("hubert"), cache / "snapshots" / commit)
        (cache / "refs" / "main").write_text(commit)
        train_run(read_recipe(tone_recipe), workspace / "run")
        kept = json.loads((workspace / "run" / "upstreams.json").read_text())
        assert kept["ssl"]["revision"] == "a" * 40  # what made the run
    assert evaluate_again(workspace / "run")


def test_bad_audio_is_named_before_any_training(workspace, tone_recipe, tiny_corpus, tmp_path):
    import numpy as np
    import soundfile

    folder = tmp_path / "bad"
    shutil.copytree(tiny_corpus.parent, folder)
    samples = np.zeros(6400)
    samples[5] = np.nan
    soundfile.write(folder / "s1-3.wav", samples, 16000, subtype="FLOAT")
    corpus = str(folder / "manifest.jsonl")
    change = {"tasks": {t: {"corpus": corpus} for t in ("asr", "emotion", "verification")}}
    with pytest.raises(DataError, match=r"s1-3\.wav holds 1 NaN"):
        train_run(read_recipe(merged(tone_recipe, change)), workspace / "run")
    soundfile.write(folder / "s1-3.wav", np.zeros(70), 16000)
    shutil.rmtree(workspace / "corpora")
    with pytest.raises(DataError, match=r"s1-3 .* has 70 samples"):
        train_run(read_recipe(merged(tone_recipe, change)), workspace / "run")
    assert not (workspace / "run").exists()


@pytest.mark.recipe
@pytest.mark.timeout(300)
def test_three_tasks_are_learned_on_tones(workspace, tone_recipe):
    """Four speakers are too few to tell others apart: there the training loss is looked at."""
    overrides = [
        "training.steps=600",
        "training.learning_rate=5e-3",
        "training.interleave={asr: 4, emotion: 1, verification: 1}",
        "upstreams.mel.num_mels=80",
        "tasks.asr.head.project=32",
        "tasks.asr.head.lstm_dim=32",
    ]
    metrics = train_run(read_recipe(tone_recipe, overrides), workspace / "run")["test"]
    assert metrics["asr"]["wer"]["value"] < 0.5
    assert metrics["emotion"]["balanced_accuracy"]["value"] > 0.8
    log = Run(workspace / "run").log()
    losses = [value for _, name, value in log if name == "train/verification/loss"]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.recipe
def test_mixed_precision_trains(workspace, tone_recipe, encoder, layers):
    if layers > 1:  # a weighted sum of layers that lie in one tensor
        tone_recipe["upstreams"] = {
            "ssl": {"kind": "huggingface", "source": str(encoder("hubert"))}
        }
    recipe = read_recipe(tone_recipe, ["training.precision=bf16-mixed"])
    metrics = train_run(recipe, workspace / "run")
    assert metrics["test"].keys() == {"asr", "emotion", "verification"}
    assert all(v.isfinite().all() for v in weights(workspace / "run").values())


@pytest.mark.recipe
def test_layer_weights_may_learn_faster(workspace, tone_recipe, encoder):
    source = str(encoder("hubert"))
    tone_recipe["upstreams"] = {"ssl": {"kind": "huggingface", "source": source}}
    moved = []
    for rate in (1, 30):
        folder = workspace / f"rate{rate}"
        train_run(read_recipe(tone_recipe, [f"training.layer_rate={rate}"]), folder)
        logits = [v for name, v in weights(folder).items() if name.endswith(".logits")]
        assert len(logits) == 3
        moved.append(max(float(v.abs().max()) for v in logits))
    assert moved[1] > 10 * moved[0]


def test_padded_extraction_says_what_padding_costs(workspace, tone_recipe, encoder, caplog):
    tone_recipe["upstreams"] = {"ssl": {"kind": "huggingface", "source": str(encoder("hubert"))}}
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    for policy in ("masked", "padded"):
        recipe = read_recipe(tone_recipe | {"length_policy": policy})
        (data,) = load_tasks(recipe).values()
        whole = data.splits["train"][0]
        both = {"train": [whole, replace(whole, id="short", duration=0.1)]}
        fill_stores(recipe, {"emotion": replace(data, splits=both)}, splits=("train",))
    (said,) = [record.getMessage() for record in caplog.records]
    changed = re.search(r"frames of upstream ssl change by ([\d.]+) %", said)
    assert float(changed[1]) > 1


@pytest.mark.recipe
def test_texts_that_are_too_long_are_counted(workspace, tone_recipe, tiny_corpus, tmp_path):
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    rows = [
        row | {"id": f"{row['id']}-{copy}", "audio": str(tiny_corpus.parent / row["audio"])}
        for row in rows
        for copy in range(4)
    ]
    rows[0]["text"] = "low " * 20
    manifest = tmp_path / "long.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    task = tone_recipe["tasks"]["asr"] | {"corpus": str(manifest)}
    recipe = read_recipe(tone_recipe | {"tasks": {"asr": task}}, ["training.steps=2"])
    metrics = train_run(recipe, workspace / "run")
    assert metrics["targets_longer_than_frames"] == {"asr": 1}
