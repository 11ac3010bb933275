"""Two processes on the CPU that train together: begun here, by torchrun, or by srun."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import distributed
from torch.distributed import HashStore

from speechfuse import build, fit, group, inputs
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import RecipeError, RunError
from speechfuse.group import check_places, joined, launched_rank
from speechfuse.launch import run_together
from speechfuse.ranks import Rank
from speechfuse.recipe import TrainingRecipe, merged
from speechfuse.steps import load_batch
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from three_tasks import three_tasks

pytestmark = pytest.mark.recipe  # seconds in all: run by make test


def weights(folder):
    return load_file(folder / "model.safetensors")


def train(recipe, folder, rank=None, stop_at=None, seen=None):
    """The steps of a recipe in this process, alone or as one of several; asked to stop at one."""
    tasks = load_tasks(recipe)
    read = inputs.find_inputs(recipe, tasks)
    run, names = Run(folder), {name: data.task for name, data in tasks.items()}
    model = build.build_model(recipe, build.stack_specs(recipe), names)
    rank = rank or Rank()
    rank._asked = threading.Event()

    def progress(what, done, total):
        if done == stop_at:
            rank._asked.set()

    def noted(data, *arguments, targets, **options):
        batch = load_batch(data, *arguments, targets=targets, **options)
        if targets and seen is not None:
            seen.append([batch.task, [u.id for u in batch.utterances], batch.parts])
        return batch

    fit.load_batch = noted
    try:
        fit.fit(recipe, model, tasks, read, run, progress, rank)
    except KeyboardInterrupt:
        return False
    finally:
        fit.load_batch = load_batch
    if rank.number == 0:
        folder.mkdir(exist_ok=True)
        (folder / "tasks.json").write_text("{}")
        run.save_model(model)
    return True


def in_parts(recipe):
    """The same, each process with a part of what is trained."""
    training = recipe.training.model_copy(update={"strategy": "fsdp"})
    return recipe.model_copy(update={"training": training})


def as_two(recipe, others, folder, progress, rank):
    """Everything that two processes do for these tests, since to begin them takes seconds."""
    seen = []
    with joined(rank):
        train(recipe, folder / "whole", rank, seen=seen)
        stopped = not train(recipe, folder / "parts", rank, stop_at=6)
        train(recipe, folder / "parts", rank)
        train(recipe, folder / "one, then two", rank)
        train(recipe, folder / "two, then one", rank, stop_at=6)
        for name, other in others.items():
            train(other, folder / name / "two", rank)
        sharded = in_parts(recipe)
        train(sharded, folder / "sharded", rank)
        stopped = stopped and not train(sharded, folder / "sharded, stopped", rank, stop_at=6)
        train(sharded, folder / "sharded, stopped", rank)
        train(sharded, folder / "one, then sharded", rank)
        train(sharded, folder / "sharded, then one", rank, stop_at=6)
        train(in_parts(others["separate"]), folder / "separate" / "sharded", rank)
    assert stopped
    (folder / f"{rank.number}.json").write_text(json.dumps(seen))


OTHERS = {
    "separate": {
        "fusion": {"interface": {"kind": "hconv"}},
        "tasks": {
            "emotion": {"crop_seconds": 0.2, "head": {"kind": "classifier", "standardize": False}},
            "verification": {"batch_seconds": 0.1},
        },
    },
    "harmonifuse": {
        "fusion": {"per_task": False, "interface": {"kind": "gated_encoder"}},
        "context": {"layers": 2, "dim": 16, "heads": 2, "join": 2, "dropout": 0.0},
        "tasks": {"asr": {"head": {"kind": "text"}}},
    },
}


@pytest.fixture(scope="module")
def pair(tiny_corpus, tmp_path_factory):
    """A folder of runs by one process and by two, some stopped in the midst of an epoch."""
    folder, corpus = tmp_path_factory.mktemp("pair"), str(tiny_corpus)
    head = {"kind": "ctc", "project": 8, "lstm_dim": 8, "dropout": 0.0}
    classifier = {"kind": "classifier", "standardize": False}
    training = {"accumulate": 2, "batch_utterances": 5, "keep": "last"}
    training |= {"interleave": {"loss_aware": 2}}
    recipe = read_recipe(
        {
            "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
            "fusion": {"interface": {"kind": "weighted_sum"}},
            "tasks": {
                "asr": {"corpus": corpus, "head": head},
                "emotion": {"corpus": corpus, "head": classifier, "class_weights": {"calm": 0.3}},
            },
            "training": {"steps": 10, "evaluate_every": 4, **training},
        }
    )
    toned = three_tasks(corpus, steps=12, evaluate_every=6, weight_decay=0.5, **training)
    others = {name: read_recipe(merged(toned, change)) for name, change in OTHERS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        seen = []
        train(recipe, folder / "one", seen=seen)
        for rest in ("two", "sharded"):
            assert not train(recipe, folder / f"one, then {rest}", stop_at=6)
        for name, other in others.items():
            train(other, folder / name / "one")
        run_together(as_two, (recipe, others, folder), 2, None)
        for first in ("two", "sharded"):
            train(recipe, folder / f"{first}, then one")
    (folder / "one.json").write_text(json.dumps(seen))
    return folder


SAME = ("whole", "one, then two", "two, then one")
SAME += ("sharded", "one, then sharded", "sharded, then one")


@pytest.mark.timeout(300)  # it begins processes, which a busy machine does slowly
class TestPair:
    def test_both_have_one_task_and_each_utterance_once(self, pair):
        one, first, second = (
            json.loads((pair / f"{name}.json").read_text()) for name in ("one", "0", "1")
        )
        assert len(one) == len(first) == len(second) == 20
        for (task, whole, _), (mine, own, parts), (theirs, rest, _) in zip(
            one, first, second, strict=True
        ):
            assert mine == theirs == task
            assert parts == 2
            assert sorted(own + rest) == sorted(whole)

    def test_a_stop_in_the_midst_of_an_epoch_leaves_no_trace(self, pair):
        for name, stopped in (("whole", "parts"), ("sharded", "sharded, stopped")):
            whole, parts = weights(pair / name), weights(pair / stopped)
            assert all(torch.equal(whole[name], parts[name]) for name in whole)

    @pytest.mark.parametrize("name", SAME)
    def test_any_number_of_processes_gives_the_same_weights(self, pair, name):
        one, found = weights(pair / "one"), weights(pair / name)
        for name, weight in one.items():
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)

    def test_an_absent_task_rests_also_where_weights_are_in_parts(self, pair):
        """Its gradients are zeros there, with which Adam and weight decay would move it."""
        one, parts = (weights(pair / "separate" / count) for count in ("one", "sharded"))
        for name, weight in one.items():
            torch.testing.assert_close(parts[name], weight, atol=2e-5, rtol=1e-4)

    @pytest.mark.parametrize("name", OTHERS)
    def test_so_it_does_with_several_tasks_crops_and_a_transformer(self, pair, name):
        """Three tasks in turns that follow their losses, steps of two batches, crops, a batch for
        each utterance of one task, which both compute; and several tasks in one transformer.
        """
        one, two = (weights(pair / name / count) for count in ("one", "two"))
        for name_, weight in one.items():
            torch.testing.assert_close(two[name_], weight, atol=2e-5, rtol=1e-4)
        logs = [Run(pair / name / count).log() for count in ("one", "two")]
        assert [row[:2] for row in logs[0]] == [row[:2] for row in logs[1]]
        assert [v for *_, v in logs[0]] == pytest.approx([v for *_, v in logs[1]], rel=1e-4)
        assert {name for _, name, _ in logs[0]} >= {"train/verification/loss", "dev/error"}


class Told:
    """A watch that notes what it is told."""

    def __init__(self, *_):
        self.said = []

    def tell(self, error):
        self.said.append(f"told: {error}")

    def wait(self):
        self.said.append("waited")

    def end(self):
        pass


LOST = [
    RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"),
    RuntimeError("Application timeout caused pair closure"),
    distributed.DistBackendError("NCCL communicator was aborted on rank 1."),
    distributed.DistStoreError("wait timeout after 5000ms, keys: /a"),
]
OWN = [
    TimeoutError(110, "Connection timed out"),  # of a disk in the network
    ConnectionResetError(104, "Connection reset by peer"),
    RuntimeError("a peer review timed out"),
    ValueError("gloo"),
]


class TestWhoseErrorItIs:
    @pytest.fixture
    def watch(self, monkeypatch):
        watch = Told()
        monkeypatch.setattr(group, "_meet", lambda rank: ["first", "second"])
        monkeypatch.setattr(group, "Watch", lambda *_: watch)
        return watch

    @pytest.mark.parametrize("error", LOST)
    def test_torch_says_that_another_is_lost(self, watch, error):
        rank = Rank(0, 2)
        rank.store = HashStore()
        with pytest.raises(RunError, match="first waits for another in vain"), joined(rank):
            raise error
        assert watch.said == ["waited"]

    @pytest.mark.parametrize("error", OWN)
    def test_any_other_error_is_its_own_and_told_at_once(self, watch, error):
        rank = Rank(0, 2)
        rank.store = HashStore()
        with pytest.raises(type(error)), joined(rank):
            raise error
        assert watch.said == [f"told: {error}"]


TORCHRUN_SAYS = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
TORCHRUN_SAYS |= {"GROUP_RANK": "1", "MASTER_ADDR": "a1", "MASTER_PORT": "29500"}
SLURM_SAYS = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "5"}
SLURM_SAYS |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NODELIST": "a[1-2]"}
SLURM_SAYS |= {"SLURM_JOB_ID": "14500", "SLURM_JOB_NAME": "train"}


class TestPlaces:
    @pytest.fixture(autouse=True)
    def _away_from_clusters(self, monkeypatch):
        for name in [*TORCHRUN_SAYS, *SLURM_SAYS]:
            monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone, too
            monkeypatch.delenv(name)

    @pytest.mark.parametrize(("said", "port"), [(TORCHRUN_SAYS, 29500), (SLURM_SAYS, 19500)])
    def test_a_place_is_that_of_torchrun_or_srun(self, monkeypatch, said, port):
        assert launched_rank() is None
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        rank = launched_rank()
        assert (rank.number, rank.count, rank.node, rank.local) == (5, 8, 1, 1)
        assert (rank.address, rank.port) == ("a1", port)

    def test_an_allocation_without_srun_is_one_process(self, monkeypatch):
        monkeypatch.setenv("SLURM_NTASKS", "1")
        assert launched_rank() is None

    def test_a_number_of_tasks_without_that_on_each_machine_is_refused(self, monkeypatch):
        monkeypatch.setenv("SLURM_NTASKS", "8")
        with pytest.raises(RunError, match="ntasks-per-node"):
            launched_rank()

    def test_what_is_asked_for_has_to_be_what_was_begun(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        place = Rank(5, 8, node=1, local=1)
        for asked in ({}, {"devices": 4}, {"num_nodes": 2}, {"devices": 4, "num_nodes": 2}):
            check_places(TrainingRecipe(**asked), place)
        for asked in ({"devices": 3}, {"devices": 4, "num_nodes": 1}):
            with pytest.raises(RecipeError, match="began 8 processes; leave both out"):
                check_places(TrainingRecipe(**asked), place)
        with pytest.raises(RecipeError, match="num_nodes is 2, and nothing began this command on"):
            check_places(TrainingRecipe(num_nodes=2), Rank())

    def test_shards_of_weights_need_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RecipeError, match="fsdp, which needs GPUs"):
            check_places(TrainingRecipe(strategy="fsdp"), Rank())


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TRAIN = ("-m", "speechfuse.cli", "train", "recipe.yaml", "--out")


def begin(folder, *command, **environment):
    """In a group of its own, as a terminal has it."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run, step, process):
    until = time.monotonic() + 300
    while not any(taken >= step for taken, *_ in Run(run).log()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def training_processes(process):
    """Of torchrun's children those that train, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        pairs = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found |= {int(pair[5:]): int(child) for pair in pairs if pair.startswith("RANK=")}
    return found


STEPS = 120


@pytest.fixture(scope="module")
def toned(tiny_corpus, tmp_path_factory):
    """A folder in which a recipe with dropout was trained by two processes that srun began."""
    folder = tmp_path_factory.mktemp("toned")
    head = {"kind": "ctc", "project": 8, "lstm_dim": 8, "dropout": 0.3}
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {
            "asr": {"corpus": str(tiny_corpus), "head": head},
            "emotion": {"corpus": str(tiny_corpus), "head": {"kind": "classifier"}},
        },
        "training": {"steps": STEPS, "evaluate_every": 10, "batch_seconds": 4, "keep": "last"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = as_srun(folder, ["srun"], ["srun"], per_node=2)
    assert "run: srun" in said[0]
    assert said[1] == ""
    return folder


def test_two_machines_meet_and_each_extracts_into_its_own_stores(toned):
    """As srun tells one process on each of two, which share the folder of the run alone."""
    options = [["machines", f"store.folder=stores-{n}"] for n in "01"]
    as_srun(toned, *options, per_node=1)
    shards = [sorted((toned / f"stores-{n}").rglob("*.safetensors")) for n in "01"]
    assert [path.name for path in shards[0]] == [path.name for path in shards[1]] != []
    assert_same(toned, "machines", Run(toned / "machines").metrics())


def as_srun(folder, *options, per_node):
    """What two processes say that train as srun begins them, so many on each machine."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": str(per_node), "SLURM_JOB_ID": "7"}
    common |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}
    began = []
    for number, own in enumerate(options):
        place = {"SLURM_NODEID": number // per_node, "SLURM_LOCALID": number % per_node}
        told = {name: str(value) for name, value in {"SLURM_PROCID": number, **place}.items()}
        began.append(begin(folder, sys.executable, *TRAIN, *own, **common, **told))
    said = [process.communicate()[0] for process in began]
    assert [process.returncode for process in began] == [0, 0], said
    return said


def assert_same(folder, name, metrics):
    """Bit for bit what two processes of srun gave."""
    whole, found = weights(folder / "srun"), weights(folder / name)
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    assert metrics["test"] == Run(folder / "srun").metrics()["test"]


@pytest.mark.timeout(900)
class TestLaunched:
    def test_torchrun_names_who_is_killed_keeps_the_step_at_ctrl_c_and_goes_on(self, toned):
        """In the end to the weights of the undisturbed run, bit for bit, with dropout."""
        run = toned / "torchrun"
        command = (*TORCHRUN, *TRAIN, "torchrun")
        with begin(toned, *command) as killed:
            wait_for_step(run, STEPS // 12, killed)
            os.kill(training_processes(killed)[1], signal.SIGKILL)
            began = time.monotonic()
            said, _ = killed.communicate()
        assert killed.returncode
        assert time.monotonic() - began < 60
        assert "rank      : 1" in said
        assert "SIGKILL" in said
        with begin(toned, *command) as stopped:
            wait_for_step(run, STEPS // 2, stopped)
            os.killpg(stopped.pid, signal.SIGINT)
            said, _ = stopped.communicate()
        assert said.count("stopped, what is done is kept; the same command goes on") == 1
        kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        assert STEPS // 2 <= kept < STEPS
        with begin(toned, *command) as ended:
            said, _ = ended.communicate()
        assert ended.returncode == 0, said
        assert said.count("run: torchrun") == 1
        assert_same(toned, "torchrun", Run(run).metrics())

    def test_so_do_processes_begun_here_and_stopped(self, toned, monkeypatch):
        monkeypatch.chdir(toned)
        change = {"training": {"devices": 2}}
        recipe = read_recipe(merged(yaml.safe_load(Path("recipe.yaml").read_text()), change))
        steps = []

        def progress(what, done, total):
            if what == "training steps":
                steps.append(done)
                if done == STEPS // 2 and len(steps) == done:
                    os.kill(os.getpid(), signal.SIGINT)

        numbers = signal.SIGINT, signal.SIGTERM
        before = [signal.getsignal(number) for number in numbers]
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, Path("launched"), progress)
        assert [signal.getsignal(number) for number in numbers] == before
        assert not multiprocessing.active_children()
        taken = len(steps)
        metrics = train_run(recipe, Path("launched"), progress)
        assert STEPS // 2 < steps[taken] < STEPS  # a step or two are taken while it is told
        assert_same(toned, "launched", metrics)
