import os
import pickle

import numpy as np
import pytest
import soundfile
import torch

from speechfuse.cache.plans import Shard, save_plan
from speechfuse.cache.shards import stored, write_shard
from speechfuse.cache.store import Store, evict
from speechfuse.errors import DataError
from speechfuse.types import StackSpec, Utterance

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


def test_checked_shards_are_not_read_again(tmp_path, utterances, monkeypatch):
    put(opened(tmp_path), utterances)
    store = opened(tmp_path)
    store.check(store.keys(utterances))
    from speechfuse.cache import shards

    monkeypatch.setattr(shards, "is_whole", lambda path: pytest.fail(f"{path} is read again"))
    store = opened(tmp_path)
    store.batch(utterances)  # marks it as used
    assert opened(tmp_path).check(store.keys(utterances)) == []


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
    assert store.bytes_for(3600) == 3600 * 50 * 13 * 768 * width
    assert store.bytes_for(3600, 2) == 3600 * 50 * 2 * 768 * width
