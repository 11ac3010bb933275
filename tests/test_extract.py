import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import killing
from speechfuse import extract as extraction
from speechfuse import filling
from speechfuse.build import read_recipe
from speechfuse.cache import plans
from speechfuse.cache.shards import HOST
from speechfuse.clips import read_batch
from speechfuse.errors import DataError, RunError
from speechfuse.extract import extract, extraction_jobs, fill_stores
from speechfuse.group import joined
from speechfuse.launch import run_together
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks

pytestmark = pytest.mark.recipe  # seconds in all: run by make test


@pytest.fixture
def one_task(workspace, tone_recipe):
    """Emotions from a filterbank, its corpus prepared."""
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    load_tasks(read_recipe(tone_recipe))
    return tone_recipe


def jobs_of(data, changes=None):
    recipe = read_recipe(merged(data, changes or {}))
    return recipe, extraction_jobs(recipe, load_tasks(recipe))


def with_encoder(data, folder, **options):
    """The recipe with this encoder in place of the filterbank."""
    part = {"kind": "huggingface", "source": str(folder), **options}
    return {**data, "upstreams": {"tiny": part}}


def contents(folder):
    """Every file of the stores by its place, but for what is remembered of other files, and what
    stores that a test still has are said to use."""
    others = {".jsonl", ".use"}
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in others)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def undisturbed(one_task):
    """What is written if nothing happens, and in how many seconds at the fastest."""
    found, seconds = [], []
    for folder in ("first", "second", "whole"):  # the first one waits for imports
        one_task["store"] = {"folder": folder}
        began = time.monotonic()
        process = killing.begin(one_task)
        process.join()
        assert process.exitcode == 0
        seconds.append(time.monotonic() - began)
        found.append(contents(Path(folder)))
    assert found[0] == found[1] == found[2]
    assert sum(name.endswith(".safetensors") for name in found[0]) >= 6
    return found[0], min(seconds)


@pytest.mark.recipe
@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_killed_at_any_moment_and_run_again_it_is_byte_for_byte_the_same(
    one_task, undisturbed, kills, tmp_path
):
    whole, seconds = undisturbed
    moments = random.Random(kills)
    cut = 0
    for number in range(kills):
        folder = tmp_path / "killed"
        one_task["store"] = {"folder": str(folder)}
        wait = moments.uniform(0, 1.1 * seconds)
        process = killing.begin(one_task)
        process.join(wait)
        process.kill()
        process.join()
        cut += process.exitcode != 0
        again = killing.begin(one_task)
        again.join()
        assert again.exitcode == 0
        assert contents(folder) == whole, f"kill {number} after {wait:.3f} s"
        shutil.rmtree(folder)
    assert cut >= kills / 3, "the kills came too late to cut anything"


def test_what_the_killed_left_goes_even_if_nothing_is_missing(one_task):
    recipe, jobs = jobs_of(one_task)
    extract(recipe, jobs)
    before = contents(jobs[0].store.root)
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = jobs[0].store.folder
    (folder / f"plan.{HOST}.{gone.pid}.part").touch()
    (folder / "0.claim").write_text(json.dumps([HOST, gone.pid]))
    use = folder / f"{HOST}.{gone.pid}.0.use"
    use.write_text(json.dumps([HOST, gone.pid, []]))
    extract(*jobs_of(one_task))
    assert not use.exists()
    assert contents(jobs[0].store.root) == before


def test_two_runs_at_once_share_the_work(one_task, undisturbed, tmp_path):
    whole, _ = undisturbed
    one_task["store"] = {"folder": str(tmp_path / "shared")}
    both = [killing.begin(one_task, tmp_path / "made") for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert contents(tmp_path / "shared") == whole
    made = Counter((tmp_path / "made").read_text().split())
    assert len(made) == sum(name.endswith(".safetensors") for name in whole)
    assert sum(made.values()) <= len(made) + 1


def test_a_damaged_shard_is_made_again_as_it_was(one_task, caplog):
    recipe, jobs = jobs_of(one_task)
    extract(recipe, jobs)
    before = contents(jobs[0].store.root)
    (path,) = jobs[0].store.folder.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(bytes(data))
    recipe, jobs = jobs_of(one_task)
    extract(recipe, jobs)
    assert "is damaged; it is deleted and made again" in caplog.text
    assert contents(jobs[0].store.root) == before


def test_audio_that_changes_before_its_turn_is_named(one_task, tmp_path):
    recipe, jobs = jobs_of(one_task)
    utterance = next(iter(jobs[0].wanted.values()))
    before = utterance.audio.read_bytes()
    try:
        soundfile.write(utterance.audio, np.zeros(6400), 16000)
        with pytest.raises(DataError, match="changed since the extraction began; run it again"):
            extract(recipe, jobs)
    finally:
        utterance.audio.write_bytes(before)
    extract(*jobs_of(one_task))


def test_a_full_disk_keeps_what_is_finished(one_task, monkeypatch):
    from speechfuse.cache import shards

    monkeypatch.setattr(plans, "SHARD_BYTES", killing.SHARD_BYTES)
    monkeypatch.setattr(extraction, "batch_seconds", lambda _: killing.BATCH_SECONDS)
    recipe, jobs = jobs_of(one_task)
    save, calls = shards.save_file, []

    def filling(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(shards, "save_file", filling)
    with pytest.raises(DataError, match="No space left on device"):
        extract(recipe, jobs)
    assert Counter(Path(name).suffix for name in contents(jobs[0].store.folder)) == {
        ".json": 2,
        ".safetensors": 2,
    }
    extract(*jobs_of(one_task))
    assert len({path.name for path in jobs[0].store.folder.glob("*.safetensors")}) == len(calls) - 1


def test_a_folder_below_a_file_is_named(one_task, workspace):
    (workspace / "file").touch()
    recipe, jobs = jobs_of(one_task, {"store": {"folder": "file/stores"}})
    with pytest.raises(DataError, match=r"cannot write in file/stores.*store\.folder"):
        extract(recipe, jobs)


READ_ONLY = """
import json, sys
from speechfuse.build import read_recipe
from speechfuse.errors import DataError
from speechfuse.extract import fill_stores
from speechfuse.taskdata import load_tasks
data = json.load(sys.stdin)
tasks = load_tasks(read_recipe(data))
((store,),) = fill_stores(read_recipe(data), tasks).values()
print(float(sum(store.read(u).sum() for u in tasks["emotion"].splits["test"])))
data["upstreams"]["mel"]["num_mels"] = 23
try:
    fill_stores(read_recipe(data), tasks)
except DataError as error:
    print(error)
"""


@pytest.mark.recipe
def test_stores_that_may_only_be_read_are_read_and_what_is_missing_is_refused(one_task, workspace):
    recipe, jobs = jobs_of(one_task)
    extract(recipe, jobs)
    command = [sys.executable, "-c", READ_ONLY]
    if os.geteuid() == 0:  # who may write everywhere
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("needs setpriv, or a user who is not root")
        command = [setpriv, "--inh-caps=-all", "--bounding-set=-all", *command]
    stores = workspace / "stores"
    folders = [stores, *(path for path in stores.rglob("*") if path.is_dir())]
    for path in stores.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    stores.chmod(0o555)
    before = contents(stores)
    try:
        done = subprocess.run(command, input=json.dumps(one_task), capture_output=True, text=True)
    finally:
        for path in folders:
            path.chmod(0o755)
    assert not done.stderr, done.stderr
    total, refused = done.stdout.splitlines()
    members = load_tasks(recipe)["emotion"].splits["test"]
    assert float(total) == pytest.approx(sum(float(jobs[0].store.read(u).sum()) for u in members))
    assert refused.startswith("cannot write in stores/")
    assert "Permission denied" in refused
    assert "choose another folder with store.folder" in refused
    assert contents(stores) == before


def test_moved_encoders_hit_and_changed_settings_miss(one_task, encoder, workspace, monkeypatch):
    def missing(data, changes=None):
        return len(jobs_of(data, changes)[1][0].missing)

    source = encoder("hubert")
    here = with_encoder(one_task, source)
    recipe, jobs = jobs_of(here)
    extract(recipe, jobs)
    every = len(jobs[0].wanted)
    shutil.copytree(source, workspace / "moved")
    assert missing(with_encoder(one_task, workspace / "moved")) == 0
    assert missing(here, {"store": {"dtype": "float32"}}) == every
    assert missing(here, {"length_policy": "equal"}) == every
    assert missing(with_encoder(one_task, source, weights="random")) == every
    assert missing(with_encoder(one_task, source, compute="bfloat16")) == every
    assert missing(with_encoder(one_task, source, compile=True)) == every
    assert missing(here, {"tasks": {"emotion": {"noise_snr": 10}}}) == every
    monkeypatch.setattr(extraction, "VERSION", 99)
    assert missing(here) == every
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(extraction, "version", lambda name: "6.0")
    assert missing(here) == every
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    weights = workspace / "moved" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert missing(with_encoder(one_task, workspace / "moved")) == every


def test_what_else_decides_a_layer_has_a_store_of_its_own(one_task, encoder, workspace):
    """Silence after whisper's clips, how samples are normalised, and what computes attention."""

    def store(source, **options):
        return jobs_of(with_encoder(one_task, source, **options))[1][0].store

    pads = {store(encoder("whisper"), whisper_pad=pad).folder for pad in (0.0, 3.0, "30s")}
    assert len(pads) == 3
    source = shutil.copytree(encoder("hubert"), workspace / "hubert")
    assert store(source).folder == store(encoder("hubert")).folder
    normal = json.loads((source / "preprocessor_config.json").read_text())
    changed = normal | {"do_normalize": not normal["do_normalize"]}
    (source / "preprocessor_config.json").write_text(json.dumps(changed))
    assert store(source).folder != store(encoder("hubert")).folder
    paths = {}
    for policy in ("masked", "padded"):
        one = store(encoder("hubert"), length_policy=policy)
        one.describe()
        paths[policy] = json.loads((one.folder / "about.json").read_text())["manner"]["attention"]
    assert paths == {
        "masked": "fused, of rows without padding",
        "padded": "of transformers' modules",
    }


def test_kinds_of_gpu_and_tf32_have_stores_of_their_own(one_task, monkeypatch):
    """Convolutions and products are rounded to TF32 where flags say so and the GPU has it."""

    def folder():
        return jobs_of(one_task)[1][0].store.folder

    found = [folder()]
    monkeypatch.setattr(extraction, "best_device", lambda: torch.device("cuda", 1))
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found.append(folder())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found.append(folder())
        torch.set_float32_matmul_precision("high")
        found.append(folder())
        torch.set_float32_matmul_precision("highest")
    capability = (7, 0)
    found.append(folder())
    assert len({*found}) == 5
    monkeypatch.setattr(extraction, "best_device", lambda: torch.device("cuda", 0))
    assert folder() == found[-1]


def test_only_what_is_missing_is_computed(one_task, monkeypatch):
    recipe = read_recipe(one_task)
    tasks = load_tasks(recipe)
    fill_stores(recipe, tasks, splits=("train",))
    read = []
    original = extraction.read_batch

    def watched(utterances, *rest):
        read.extend(u.id for u in utterances)
        return original(utterances, *rest)

    monkeypatch.setattr(extraction, "read_batch", watched)
    monkeypatch.setattr(filling, "read_batch", watched)
    fill_stores(recipe, tasks)
    rest = {u.id for split in ("dev", "test") for u in tasks["emotion"].splits[split]}
    assert set(read) == rest
    assert len(read) == len(rest) + 1  # one is looked at before
    read.clear()
    fill_stores(recipe, tasks)
    assert read == []


def test_a_subset_of_layers_hits_and_the_rest_is_added(one_task, encoder):
    every = with_encoder(one_task, encoder("hubert"))
    some = with_encoder(one_task, encoder("hubert"), layers=[1, 2])
    recipe, jobs = jobs_of(some)
    extract(recipe, jobs)
    early = {path: path.read_bytes() for path in jobs[0].store.folder.glob("*.safetensors")}
    recipe, jobs = jobs_of(every)
    store, wanted = jobs[0].store, [*jobs[0].wanted.values()]
    count = store.spec.num_layers
    assert {store.lacks(key) for key in jobs[0].wanted} == {(0, *range(3, count))}
    half = sum(store.bytes_for(u.duration, count - 2) for u in wanted)
    assert jobs[0].missing_bytes == pytest.approx(half)
    extract(recipe, jobs)
    assert early.items() <= {p: p.read_bytes() for p in store.folder.glob("*.safetensors")}.items()
    for layers in ([0], [2], [0, 2], [1, 2]):
        _, (job,) = jobs_of(with_encoder(one_task, encoder("hubert"), layers=layers))
        assert not job.missing
        assert torch.equal(job.store.read(wanted[0]), store.read(wanted[0])[layers])


def test_int8_tells_its_error_whoever_stored_it(one_task, small_shards, caplog):
    recipe, jobs = jobs_of(one_task, {"store": {"dtype": "int8"}})
    extract(recipe, jobs)
    whole, exact = jobs_of(one_task, {"store": {"dtype": "float32"}})
    extract(whole, exact)
    wrong = size = 0.0
    for utterance in exact[0].wanted.values():
        right = exact[0].store.read(utterance)
        wrong += float((jobs[0].store.read(utterance) - right).square().sum())
        size += float(right.square().sum())
    error = (wrong / size) ** 0.5
    assert jobs[0].int8_error == pytest.approx(error, rel=1e-3)
    assert 0 < error < 0.02
    assert exact[0].int8_error is None
    recipe, again = jobs_of(one_task, {"store": {"dtype": "int8"}})
    assert again[0].int8_error == jobs[0].int8_error
    recipe, two = jobs_of(one_task, {"store": {"dtype": "int8", "folder": "two"}})
    assert two[0].int8_error is None
    extract(recipe, two, processes=2)
    assert contents(two[0].store.folder) == contents(jobs[0].store.folder)
    assert two[0].int8_error == jobs[0].int8_error
    recipe = read_recipe(merged(one_task, {"store": {"dtype": "int8", "folder": "trained"}}))
    fill_stores(recipe, load_tasks(recipe))
    assert caplog.text.count(f"int8 of mel: off by {100 * error:.2f} %, relative rms") == 1


def test_what_float16_cannot_hold_is_refused(one_task, monkeypatch):
    recipe, jobs = jobs_of(one_task)
    upstream = jobs[0].upstream
    monkeypatch.setattr(type(upstream), "forward", _large(type(upstream).forward))
    with pytest.raises(DataError, match=r"not finite as float16; with float16 try.*bfloat16"):
        extract(recipe, jobs)


def _large(forward):
    def scaled(self, wav):
        stack = forward(self, wav)
        object.__setattr__(stack, "layers", tuple(layer * 1e6 for layer in stack.layers))
        return stack

    return scaled


def test_the_budget_evicts_the_oldest_and_refuses_what_cannot_fit(one_task, caplog):
    recipe, jobs = jobs_of(one_task)
    extract(recipe, jobs)
    (old,) = jobs[0].store.folder.glob("*.safetensors")
    size = old.stat().st_size / 1e9
    other = {"upstreams": {"mel": {"num_mels": 23}}, "store": {"budget_gb": 1.5 * size}}
    with pytest.raises(DataError, match=r"runs at work read 0\.0 GB.*wait until they have ended"):
        extract(*jobs_of(one_task, other))
    utterance = next(iter(jobs[0].wanted.values()))
    assert jobs[0].store.read(utterance).any()
    del jobs  # that run has ended
    extract(*jobs_of(one_task, other))
    assert "to stay within store.budget_gb" in caplog.text
    assert not old.exists()
    with pytest.raises(DataError, match=r"need 0\.0 GB, store\.budget_gb is .*store\.dtype=int8"):
        extract(*jobs_of(one_task, {"store": {"budget_gb": 0.5 * size}}))


@pytest.mark.recipe
def test_layers_that_another_process_trains_on_are_not_deleted(one_task, tmp_path):
    """Until it has ended; a budget that has no room beside them is refused."""
    one_task["training"]["steps"] = 200
    steps = tmp_path / "steps"
    training = killing.begin_training(one_task, tmp_path / "run", steps)
    while not steps.exists() and training.is_alive():
        time.sleep(0.02)
    os.kill(training.pid, signal.SIGSTOP)  # it may not end before it is asked about
    (shard,) = Path("stores").glob("*/*.safetensors")
    tight = {"store": {"budget_gb": 1.5 * shard.stat().st_size / 1e9}}
    other = merged(tight, {"upstreams": {"mel": {"num_mels": 23}}})
    with pytest.raises(DataError, match="runs at work read"):
        extract(*jobs_of(one_task, other))
    assert training.is_alive()
    os.kill(training.pid, signal.SIGCONT)
    training.join()
    assert training.exitcode == 0
    assert shard.exists()
    extract(*jobs_of(one_task, other))
    assert not shard.exists()


@pytest.mark.recipe
def test_two_processes_write_what_one_does_and_a_lost_one_is_told(one_task):
    recipe, jobs = jobs_of(one_task, {"store": {"folder": "one"}})
    extract(recipe, jobs)
    again, more = jobs_of(one_task, {"store": {"folder": "two"}})
    killer = threading.Thread(target=kill_one_of_two)
    killer.start()
    lost = r"extracting process . of 2 was ended by SIGKILL.*run it again"
    with pytest.raises(RunError, match=lost):
        extract(again, more, processes=2)
    killer.join()
    extract(again, more, processes=2)
    assert not more[0].missing
    assert contents(jobs[0].store.root) == contents(more[0].store.root)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(plans, "SHARD_BYTES", killing.SHARD_BYTES)
    monkeypatch.setattr(extraction, "batch_seconds", lambda _: killing.BATCH_SECONDS)


def test_what_trains_on_several_gpus_extracts_on_as_many(one_task, small_shards, monkeypatch):
    """Two processes, which find no GPU here, under a parent that counts two."""
    began, begin = [], extraction.run_together

    def counted(work, arguments, count, *rest):
        began.append(count)
        begin(work, arguments, count, *rest)

    monkeypatch.setattr(extraction, "run_together", counted)
    extract(*jobs_of(one_task, {"store": {"folder": "one"}}))
    for folder, gpus in (("cpu", 0), ("two", 2)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        change = {"store": {"folder": folder}, "training": {"devices": 3}}
        recipe = read_recipe(merged(one_task, change))
        fill_stores(recipe, load_tasks(recipe))
        assert began == [gpus] * (gpus > 0)
        assert contents(Path(folder)) == contents(Path("one"))


def test_every_shard_is_looked_for_a_few_times_however_many_there_are(one_task, monkeypatch):
    monkeypatch.setattr(plans, "SHARD_BYTES", 3000)
    monkeypatch.setattr(extraction, "batch_seconds", lambda _: 1.0)
    recipe, jobs = jobs_of(one_task)
    looked, told = [], []
    path = type(jobs[0].store).path
    monkeypatch.setattr(type(jobs[0].store), "path", lambda *of: looked.append(of) or path(*of))
    extract(recipe, jobs, lambda what, done, total: told.append((done, total)))
    shards = len([*jobs[0].store.folder.glob("*.safetensors")])
    assert shards >= 30
    assert len(looked) <= 4 * shards
    assert len(told) >= shards
    assert told == sorted(told)
    assert told[-1] == (len(jobs[0].wanted),) * 2


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_next_batches_are_read_while_one_is_computed(
    one_task, small_shards, monkeypatch, ahead
):
    """Also those of shards that come next, no more than so many, and the files are the same."""
    extract(*jobs_of(one_task, {"store": {"folder": "whole"}}))
    monkeypatch.setitem(filling.AHEAD, "cpu", ahead)
    counts, held, lock = Counter(), [], threading.Lock()
    read, layers = filling._Maker._read, filling._Maker._layers

    def reading(self, keys):
        with lock:
            counts["begun"] += 1
        return read(self, keys)

    def computing(self, *batch):
        time.sleep(0.05)  # readers are faster
        held.append(counts["begun"] - len(held))
        return layers(self, *batch)

    monkeypatch.setattr(filling._Maker, "_read", reading)
    monkeypatch.setattr(filling._Maker, "_layers", computing)
    recipe, jobs = jobs_of(one_task, {"store": {"folder": "ahead"}})
    extract(recipe, jobs)
    assert held[:-ahead] == [ahead + 1] * (len(held) - ahead)  # with the one that is computed
    assert len(held) > 9
    assert contents(Path("ahead")) == contents(Path("whole"))


def filled_by_both(data, made, progress, rank):
    """One of two processes that train together; those begun by torchrun take the same way."""
    from speechfuse.cache import shards

    plans.SHARD_BYTES = killing.SHARD_BYTES
    extraction.batch_seconds = lambda _: killing.BATCH_SECONDS
    write = shards.write_shard

    def slow(path, *rest):
        write(path, *rest)
        time.sleep(0.2)
        with made.open("a") as file:
            file.write(f"{path.name} {rank.number}\n")

    def asked(*_):
        with made.open("a") as file:
            file.write(f"asked {rank.number}\n")

    shards.write_shard = slow
    recipe = read_recipe(data)
    with joined(rank):
        stores = fill_stores(recipe, load_tasks(recipe), before=asked, rank=rank)
        assert not stores["emotion"][0].missing(load_tasks(recipe)["emotion"].splits["train"])


def test_all_that_train_together_extract_and_one_asks(one_task, undisturbed, tmp_path):
    whole, _ = undisturbed
    data = merged(one_task, {"store": {"folder": str(tmp_path / "both")}})
    run_together(filled_by_both, (data, tmp_path / "made"), 2, None)
    assert contents(tmp_path / "both") == whole
    asked, *lines = (tmp_path / "made").read_text().splitlines()
    assert asked == "asked 0"
    made, by = zip(*(line.split() for line in lines), strict=True)
    assert len(made) == len({*made}) == sum(name.endswith(".safetensors") for name in whole)
    assert {*by} == {"0", "1"}


def ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.recipe
def test_ctrl_c_tells_all_processes_and_they_end_after_a_shard(one_task, small_shards, caplog):
    extract(*jobs_of(one_task, {"store": {"folder": "whole"}}))
    recipe, jobs = jobs_of(one_task, {"store": {"folder": "two"}})
    with pytest.raises(KeyboardInterrupt):
        extract(recipe, jobs, ctrl_c, processes=2)
    assert "stopping after this shard; once more: at once" in caplog.text
    assert "step" not in caplog.text
    extract(*jobs_of(one_task, {"store": {"folder": "two"}}))
    assert contents(Path("two")) == contents(Path("whole"))


def test_ctrl_c_keeps_what_is_made_and_the_command_says_so(one_task, small_shards, monkeypatch):
    import yaml
    from typer.testing import CliRunner

    from speechfuse.cli import app

    extract(*jobs_of(one_task, {"store": {"folder": "whole"}}))
    whole = contents(Path("whole"))
    Path("r.yaml").write_text(yaml.safe_dump(merged(one_task, {"store": {"folder": "one"}})))
    monkeypatch.setattr(extraction, "fill", lambda *given: filling.fill(*given[:3], ctrl_c))
    stopped = CliRunner().invoke(app, ["extract", "r.yaml"])
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("stopped, what is done is kept; the same command goes on\n")
    made = len([*Path("one").rglob("*.safetensors")])
    assert 1 <= made < sum(name.endswith(".safetensors") for name in whole)
    monkeypatch.setattr(extraction, "fill", filling.fill)
    assert CliRunner().invoke(app, ["extract", "r.yaml"]).exit_code == 0
    assert contents(Path("one")) == whole


def kill_one_of_two():
    """Once both have begun."""
    for _ in range(600):
        time.sleep(0.1)
        if len(begun := active_children()) == 2:
            begun[0].kill()
            return


def test_a_batch_is_its_utterances_alone(one_task, encoder):
    data = with_encoder(one_task, encoder("wavlm"))
    recipe, jobs = jobs_of(data, {"store": {"dtype": "float32"}})
    extract(recipe, jobs)
    upstream, store = jobs[0].upstream, jobs[0].store
    for utterance in [*jobs[0].wanted.values()][:3]:
        alone = upstream(read_batch([utterance], upstream))
        found = store.read(utterance)
        for one, other in zip(alone.layers, found, strict=True):
            torch.testing.assert_close(one[0], other, atol=1e-5, rtol=1e-4)


@pytest.mark.recipe
def test_train_asks_past_the_limits_of_extract_and_only_then(one_task, workspace, monkeypatch):
    import yaml
    from typer.testing import CliRunner

    from speechfuse import cli
    from speechfuse.errors import SpeechFuseError

    one_task["training"]["steps"] = 2
    (workspace / "r.yaml").write_text(yaml.safe_dump(one_task))
    call = ["train", "r.yaml", "--out", "run"]
    monkeypatch.setattr("speechfuse.cli.before.LIMIT_GB", 0.0)
    asked = CliRunner().invoke(cli.app, call)
    assert isinstance(asked.exception, SpeechFuseError)  # exit code 2 by main
    expected = r"0\.0 GB of layers in about 0 s, past 0 GB or 1 h; nothing was computed, add --yes"
    assert re.match(expected, str(asked.exception))
    assert "hours to compute" in asked.stdout
    assert not [*(workspace / "stores").glob("*/*.safetensors")]
    assert not (workspace / "run").exists()
    done = CliRunner().invoke(cli.app, [*call, "--yes"])
    assert done.exit_code == 0, done.output
    assert "hours to compute" in done.stdout
    shutil.rmtree(workspace / "run")
    again = CliRunner().invoke(cli.app, call)  # nothing is missing
    assert again.exit_code == 0, again.output
    assert "hours to compute" not in again.stdout
    monkeypatch.setattr("speechfuse.cli.before.LIMIT_GB", 10.0)
    fresh = CliRunner().invoke(cli.app, [*call[:-1], "other", "store.folder=fresh"])
    assert fresh.exit_code == 0, fresh.output
    assert "hours to compute" not in fresh.stdout


@pytest.mark.recipe
def test_whatever_reads_layers_asks_as_train_does(one_task, workspace, monkeypatch):
    """A sweep for all of its rows at once, before the first is trained."""
    import yaml
    from typer.testing import CliRunner

    from speechfuse.cli import app
    from speechfuse.errors import SpeechFuseError

    one_task["training"]["steps"] = 2
    fine = {"kind": "filterbank", "num_mels": 23}
    two = one_task | {"upstreams": one_task["upstreams"] | {"fine": fine}}
    emotion = one_task["tasks"]["emotion"]
    files = {
        "r.yaml": one_task,
        "sweep.yaml": {
            "name": "s",
            "recipe": two,
            "rows": {"mel": {"use": ["mel"]}, "fine": {"use": ["fine"]}},
            "seeds": [1, 2],
        },
        "probe.yaml": {
            "name": "p",
            "upstreams": two["upstreams"],
            "corpus": emotion["corpus"],
            "properties": ["emotion"],
            "folds": 3,
        },
        "select.yaml": {
            "name": "c",
            "upstreams": two["upstreams"],
            "tasks": {"emotion": {"corpus": emotion["corpus"]}},
            "folds": 3,
        },
    }
    for name, data in files.items():
        (workspace / name).write_text(yaml.safe_dump(data))
    made = CliRunner().invoke(app, ["train", "r.yaml", "--out", "run"])
    assert made.exit_code == 0, made.output
    monkeypatch.setattr("speechfuse.cli.before.LIMIT_GB", 0.0)
    for call, encoders in (
        (["evaluate", "run"], 1),
        (["weights", "run"], 1),
        (["sweep", "sweep.yaml"], 2),
        (["sweep", "sweep.yaml", "--jobs", "2"], 2),
        (["probe", "probe.yaml"], 2),
        (["select", "select.yaml"], 2),
    ):
        shutil.rmtree("stores", ignore_errors=True)
        asked = CliRunner().invoke(app, call)
        assert isinstance(asked.exception, SpeechFuseError), (call, asked.output)
        expected = (
            r"0\.0 GB of layers in about 0 s, past 0 GB or 1 h; nothing was computed, add --yes"
        )
        assert re.match(expected, str(asked.exception))
        assert "hours to compute" in asked.stdout
        assert asked.stdout.count("1 x 2") == encoders, asked.stdout  # rows of the table
        assert not [*workspace.glob("stores/*/*.safetensors")]
    for call in (["evaluate", "run"], ["sweep", "sweep.yaml"], ["probe", "probe.yaml"]):
        done = CliRunner().invoke(app, [*call, "--yes"])
        assert done.exit_code == 0, done.output
        again = CliRunner().invoke(app, call)  # nothing is missing
        assert again.exit_code == 0, again.output
        assert "hours to compute" not in again.stdout


def test_time_is_told_of_as_many_processes_as_are_asked_for(one_task, monkeypatch):
    """Threads of the CPU are shared among them; each has a GPU of its own, if there are as many."""
    recipe, jobs = jobs_of(one_task)
    monkeypatch.setattr(extraction, "find_rates", lambda *_: ({"mel": 2.0}, "as given"))
    hours = sum(u.duration for u in jobs[0].wanted.values()) / 2

    def seconds(processes):
        (title, _, _), _, told = extraction.extraction_table(recipe, jobs, processes)
        assert (f"{processes} processes" in title) == (processes > 1)
        return told

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [seconds(n) for n in (1, 2, 4)] == [hours] * 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert [seconds(n) for n in (1, 2, 8)] == [hours, hours / 2, hours / 3]
    monkeypatch.setattr(extraction, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert [seconds(n) for n in (1, 8, 16)] == [hours, hours / 8, hours / 8]


@pytest.mark.recipe
def test_the_command_prints_size_and_time_and_asks(one_task, tiny_corpus, workspace):
    import yaml
    from typer.testing import CliRunner

    from speechfuse.cli import app
    from speechfuse.errors import SpeechFuseError

    (workspace / "r.yaml").write_text(yaml.safe_dump(one_task))
    call = ["extract", "r.yaml"]
    asked = CliRunner().invoke(app, [*call, "--limit-gb", "0"])
    assert isinstance(asked.exception, SpeechFuseError)
    assert "nothing was computed, add --yes to go on" in str(asked.exception)
    assert "hours to compute" in asked.stdout
    assert not list((workspace / "stores").glob("*/*.safetensors"))
    done = CliRunner().invoke(app, [*call, "--limit-gb", "0", "--yes"])
    assert done.exit_code == 0, done.output
    assert "stored in stores/" in done.stdout
    (shard,) = (workspace / "stores").glob("*/*.safetensors")
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    again = CliRunner().invoke(app, [*call, "--verify", "store.dtype=float16"])
    assert again.exit_code == 0, again.output
    assert shard.read_bytes() == before
    for _ in range(2):
        eight = CliRunner().invoke(app, [*call, "store.dtype=int8"])
        assert eight.stdout.count("int8 of mel: off by 0.") == 1
