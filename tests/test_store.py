import gc
import json
import os
import pickle
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from speechfuse.cache import claims, shards, uses
from speechfuse.cache.claims import claimed, sweep_claims
from speechfuse.cache.plans import Shard, save_plan
from speechfuse.cache.shards import HOST, stored, write_shard
from speechfuse.cache.store import Store, evict
from speechfuse.errors import DataError, RunError
from speechfuse.types import StackSpec, Utterance
from test_claims import shows_life

SPEC = StackSpec(3, 4, 50.0)


@pytest.fixture
def utterances(tmp_path):
    made = []
    for i in range(4):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, np.full(16000, i / 8), 16000)
        made.append(Utterance(id=str(i), audio=path, duration=1.0))
    return made


def stacks(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(3, 5 + count, 4, generator=generator)


def opened(tmp_path, dtype="float32", about=None, layers=None):
    spec = SPEC if layers is None else StackSpec(len(layers), 4, 50.0)
    return Store(tmp_path / "s", about or {"a": 1}, spec, dtype, layers)


def put(store, utterances, layers=(0, 1, 2), planned=True):
    """A shard with these layers of these utterances, whose ids seed what is in them."""
    shard = Shard(layers, (tuple(store.key(u) for u in utterances),))
    tensors = {}
    for u in utterances:
        for ending, tensor in stored(stacks(int(u.id))[list(layers)], store.dtype).items():
            tensors[store.key(u) + ending] = tensor
    store.describe()
    if planned:
        save_plan(store.folder, [shard])
    write_shard(store.path(shard), tensors, layers)
    store.look()
    return store.path(shard)


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2), ("int8", 2e-2)]
)
def test_what_is_written_is_read(tmp_path, utterances, dtype, error, planned):
    put(opened(tmp_path, dtype), utterances, planned=planned)
    store = pickle.loads(pickle.dumps(opened(tmp_path, dtype)))
    assert store.missing(utterances) == []
    batch = store.batch([utterances[3], utterances[0]])
    assert batch.lengths.tolist() == [8, 5]
    assert batch.spec == SPEC
    assert batch.layers[0].dtype == torch.float32
    for layer, expected in zip(batch.layers, stacks(3), strict=True):
        torch.testing.assert_close(layer[0], expected, atol=error, rtol=error)
    assert (batch.layers[1][1, 5:] == 0).all()
    assert store.frames(utterances[2]) == 7
    torch.testing.assert_close(store.read(utterances[1]), stacks(1), atol=error, rtol=error)


def test_int8_is_off_by_half_a_step_of_its_channel_at_most(tmp_path, utterances):
    store = opened(tmp_path, "int8")
    put(store, utterances)
    for u in utterances:
        step = stacks(int(u.id)).abs().amax(1, keepdim=True) / 127
        assert ((store.read(u) - stacks(int(u.id))).abs() <= 0.501 * step).all()


def test_spans_of_frames_are_read_exactly(tmp_path, utterances):
    store = opened(tmp_path)
    put(store, utterances)
    batch = store.batch([utterances[3], utterances[0]], [slice(2, 6), slice(0, 5)])
    assert batch.lengths.tolist() == [4, 5]
    for layer, long, short in zip(batch.layers, stacks(3), stacks(0), strict=True):
        assert torch.equal(layer[0, :4], long[2:6])
        assert torch.equal(layer[1], short)


def test_one_layer_is_read_without_the_others(tmp_path, utterances):
    store = opened(tmp_path)
    put(store, utterances)
    for index, expected in enumerate(stacks(2)):
        assert torch.equal(store.layer(utterances[2], index), expected)


def test_a_subset_of_layers_is_there_when_all_are(tmp_path, utterances):
    put(opened(tmp_path), utterances)
    for layers in [(0,), (2,), (0, 2), (1, 2)]:
        store = opened(tmp_path, layers=layers)
        assert store.missing(utterances) == []
        assert torch.equal(store.read(utterances[1]), stacks(1)[list(layers)])


def test_layers_that_came_later_stand_beside_the_others(tmp_path, utterances):
    put(opened(tmp_path), utterances, (1,))
    store = opened(tmp_path)
    assert store.missing(utterances) == utterances
    assert store.lacks(store.key(utterances[0])) == (0, 2)
    put(store, utterances[:2], (0, 2))
    assert store.missing(utterances) == utterances[2:]
    assert torch.equal(store.read(utterances[1]), stacks(1))
    assert torch.equal(store.batch(utterances[:2]).layers[2][1], stacks(1)[2])


def test_only_what_is_missing_is_asked_for(tmp_path, utterances):
    put(opened(tmp_path), utterances[:2])
    assert opened(tmp_path).missing([*utterances, utterances[3]]) == utterances[2:]


def test_other_settings_have_another_store(tmp_path, utterances):
    put(opened(tmp_path), utterances)
    assert opened(tmp_path, about={"a": 2}).missing(utterances) == utterances
    assert opened(tmp_path, "float16").missing(utterances) == utterances


def test_renamed_and_moved_audio_is_known_and_other_audio_of_its_name_is_not(tmp_path, utterances):
    put(opened(tmp_path), utterances)
    first, second = utterances[:2]
    moved = tmp_path / "elsewhere" / "other.wav"
    moved.parent.mkdir()
    first.audio.rename(moved)
    store = opened(tmp_path)
    assert store.missing([Utterance(id="new", audio=moved, duration=1.0)]) == []
    times = second.audio.stat()
    soundfile.write(second.audio, np.full(16000, 0.7), 16000)
    os.utime(second.audio, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert second.audio.stat().st_size == times.st_size
    assert store.missing([second]) == [second]
    assert store.missing([Utterance(id="0", audio=moved, duration=0.5)])
    with pytest.raises(DataError, match="prepare the corpus again"):
        store.missing([first])


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_what_becomes_of_audio_while_its_layers_are_read_is_no_matter(tmp_path, utterances, how):
    """A run knows its layers by what the audio was when it looked for them; the next one looks."""
    put(opened(tmp_path), utterances)
    store = opened(tmp_path)
    store.keys(utterances)
    first = utterances[0]
    if how == "gone":
        first.audio.unlink()
    else:
        soundfile.write(first.audio, np.full(16000, 0.7), 16000)
    same = replace(first, text="of another task")
    for one in (store, pickle.loads(pickle.dumps(store))):  # another process reads as well
        assert torch.equal(one.read(same), stacks(0))
        assert torch.equal(one.layer(first, 1), stacks(0)[1])
        assert one.batch(utterances[:2]).lengths.tolist() == [one.frames(first), 6]
    with pytest.raises(DataError if how == "gone" else RunError, match=str(first.audio)):
        opened(tmp_path).read(first)


def test_layers_that_are_gone_are_named(tmp_path, utterances):
    path = put(opened(tmp_path), utterances)
    store = opened(tmp_path)
    path.unlink()
    with pytest.raises(RunError, match="damaged or gone"):
        store.read(utterances[0])
    store.look()
    with pytest.raises(RunError, match=rf"{utterances[0].audio}.* not in .*run it again"):
        store.read(utterances[0])


def test_hashes_of_audio_are_kept_for_the_next_process(tmp_path, utterances, monkeypatch):
    put(opened(tmp_path), utterances)
    opened(tmp_path).missing(utterances)
    from speechfuse.cache import memo, store

    memo.audio_hashes.cache_clear()
    monkeypatch.setattr(store, "file_sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert opened(tmp_path).missing(utterances) == []


@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "header"])
def test_a_damaged_shard_is_named_and_missing(tmp_path, utterances, fault, caplog):
    whole = put(opened(tmp_path), utterances[:2])
    path = put(opened(tmp_path), utterances[2:])
    data = bytearray(path.read_bytes())
    if fault == "flip":
        data[-9] ^= 4
    if fault == "header":
        data[data.index(b"F32")] ^= 1
    path.write_bytes({"cut": data[:-3], "empty": b""}.get(fault, bytes(data)))
    store = opened(tmp_path)
    assert store.check(store.keys(utterances)) == [path]
    assert f"{path} is damaged" in caplog.text
    assert store.missing(utterances) == utterances[2:]
    assert not path.exists()
    assert whole.exists()
    assert store.check(store.keys(utterances), again=True) == []


@pytest.mark.parametrize("fault", ["cut", "empty"])
def test_a_damaged_shard_that_no_plan_names_goes_too(tmp_path, utterances, fault, caplog):
    """What was in it is not known, so it goes whatever is wanted."""
    whole = put(opened(tmp_path), utterances[:2])
    path = put(opened(tmp_path), utterances[2:], planned=False)
    other = path.with_name("model.safetensors")  # is no shard
    other.touch()
    path.write_bytes({"cut": path.read_bytes()[:-3], "empty": b""}[fault])
    store = opened(tmp_path)
    assert store.missing(utterances) == utterances[2:]
    assert path.exists()
    assert store.check(store.keys(utterances)) == [path]
    assert f"{path} is damaged" in caplog.text
    assert not path.exists()
    assert other.exists()
    assert whole.exists()
    put(store, utterances[2:])
    assert opened(tmp_path).missing(utterances) == []


@pytest.mark.parametrize("when", ["at work", "just made"])
def test_a_damaged_shard_that_another_one_makes_anew_is_left_to_it(
    tmp_path, utterances, when, monkeypatch
):
    path = put(opened(tmp_path), utterances)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    store = opened(tmp_path)
    if when == "at work":
        with claimed(path):
            store.check(store.keys(utterances))
    else:
        is_whole = shards.is_whole

        def slow(path):
            found = is_whole(path)
            path.write_bytes(data)
            return found

        monkeypatch.setattr(shards, "is_whole", slow)
        store.check(store.keys(utterances))
        assert path.read_bytes() == data
        assert torch.equal(store.read(utterances[0]), stacks(0))
    assert path.exists()


def test_a_shard_that_cannot_be_opened_now_is_not_damaged(tmp_path, utterances, monkeypatch):
    path = put(opened(tmp_path), utterances, planned=False)

    def many(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(shards, "safe_open", many)
    store = opened(tmp_path)
    store.check(store.keys(utterances))
    assert path.exists()


def test_checked_shards_are_not_read_again(tmp_path, utterances, monkeypatch):
    put(opened(tmp_path), utterances)
    store = opened(tmp_path)
    store.check(store.keys(utterances))
    monkeypatch.setattr(shards, "is_whole", lambda path: pytest.fail(f"{path} is read again"))
    store = opened(tmp_path)
    store.batch(utterances)  # marks it as used
    assert opened(tmp_path).check(store.keys(utterances)) == []


def test_what_is_known_of_shards_is_written_once(tmp_path, utterances):
    """And whoever waits for the first time sees how far it is."""
    for u in utterances:
        put(opened(tmp_path), [u])
    told = []
    for _ in range(3):
        store = opened(tmp_path)
        store.check(store.keys(utterances), progress=lambda *how_far: told.append(how_far))
    assert len((tmp_path / "s" / "checked.jsonl").read_text().splitlines()) == 4
    assert told == [("shards checked", n, 4) for n in range(1, 5)]


def test_what_was_not_used_for_longest_goes_first(tmp_path, utterances):
    store = opened(tmp_path)
    old, new, kept = (put(store, [u]) for u in utterances[:3])
    for age, path in enumerate((new, old, kept)):  # the oldest is kept
        os.utime(path, ns=(10**18 - age * 10**9, path.stat().st_mtime_ns))
    total = sum(path.stat().st_size for path in (old, new, kept))
    assert evict(store.root, 0, total, {kept}) == []
    assert evict(store.root, 1, total, {kept}) == [old]
    again = put(store, utterances[:1])
    opened(tmp_path).read(utterances[1])
    assert evict(store.root, 1, total, {kept}) == [again]
    assert evict(store.root, 9 * total, total, {kept}) == [new]


def test_only_shards_are_evicted(tmp_path, utterances):
    """A folder of stores may be one in which other things lie, even the current one."""
    store = opened(tmp_path)
    path = put(store, utterances)
    root, shard = store.root, path.name
    others = [
        root / "a" / "model.safetensors",
        root / "a" / shard,
        root / "0123456789abcdef" / shard,
        store.folder / "model.safetensors",
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(bytes(99))
    for folder in (root / "a", root / "0123456789abcdef"):
        (folder / "about.json").write_text("{}")
    size = path.stat().st_size
    assert evict(root, 0, size, set()) == []
    assert evict(root, 1, size, set()) == [path]
    assert all(other.exists() for other in others)


def test_what_a_run_reads_is_not_evicted_by_another(tmp_path, utterances):
    old = put(opened(tmp_path), utterances[:1])
    store = opened(tmp_path)
    read = put(store, utterances[1:2])
    os.utime(read, (0, read.stat().st_mtime))
    size = old.stat().st_size + read.stat().st_size
    store.hold([read])
    (mark,) = store.folder.glob("*.use")
    text, marks = mark.read_text(), [mark]
    copy = pickle.loads(pickle.dumps(store))  # another process's, which ends first
    del copy
    gc.collect()
    assert mark.exists()
    assert evict(store.root, 1, size, set()) == [old]
    before = {path: path.stat().st_size for path in store.folder.iterdir()}
    with pytest.raises(DataError, match=r"runs at work.*budget_gb"):
        evict(store.root, 1, read.stat().st_size, set())
    assert before == {path: path.stat().st_size for path in store.folder.iterdir()}
    assert evict(store.root, 1, 1, {read}) == []  # its own
    host, pid, names = json.loads(text)
    assert (host, pid) == (HOST, os.getpid())
    del store  # the run has ended
    gc.collect()
    assert not mark.exists()
    gone = subprocess.Popen(["true"])
    gone.wait()
    mark.write_text(json.dumps([HOST, gone.pid, names]))
    assert evict(read.parent.parent, 1, 1, set()) == [read]
    assert marks == [*read.parent.glob("*.use")]
    sweep_claims(read.parent)
    assert not mark.exists()


def test_what_is_held_is_added_to_and_shows_signs_of_life(tmp_path, utterances, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    store = opened(tmp_path)
    paths = [put(store, [u]) for u in utterances[:2]]
    for path in paths:
        store.hold([path])
    (mark,) = store.folder.glob("*.use")
    assert uses.in_use(store.root) == {*paths}
    assert shows_life(mark)


def test_shards_that_went_before_they_were_held_are_missing(tmp_path, utterances):
    first, _ = (put(opened(tmp_path), [u]) for u in utterances[:2])
    store = opened(tmp_path)
    first.unlink()
    store.check(store.keys(utterances))
    assert store.missing(utterances[:2]) == utterances[:1]


def test_colleagues_may_read_what_the_umask_lets_them(tmp_path, utterances):
    before = os.umask(0o027)
    try:
        path = put(opened(tmp_path), utterances)
    finally:
        os.umask(before)
    modes = {one.suffix: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert modes == {".json": 0o640, ".safetensors": 0o640}


@pytest.mark.parametrize(("dtype", "width"), [("float16", 2), ("float32", 4), ("int8", 1)])
def test_bytes_are_known_before_anything_is_written(tmp_path, dtype, width):
    store = Store(tmp_path, {}, StackSpec(13, 768, 50.0), dtype)
    scale = 768 * 4 if dtype == "int8" else 0  # of each layer of an utterance
    assert store.bytes_for(3600) == 13 * (3600 * 50 * 768 * width + scale)
    assert store.bytes_for(3600, 2, 9) == 2 * (3600 * 50 * 768 * width + 9 * scale)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_bytes_are_those_of_the_file_but_for_its_header(tmp_path, utterances, dtype):
    store = opened(tmp_path, dtype)
    path = put(store, utterances)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    seconds = sum(store.frames(u) for u in utterances) / SPEC.frame_rate
    size = path.stat().st_size - header
    assert size == pytest.approx(store.bytes_for(seconds, utterances=len(utterances)))
