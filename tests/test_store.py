import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechfuse.cache.store import Store
from speechfuse.errors import RunError
from speechfuse.types import StackSpec, Utterance

SPEC = StackSpec(3, 4, 50.0)


@pytest.fixture
def utterances(tmp_path):
    made = []
    for i in range(4):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, np.zeros(16000), 16000)
        made.append(Utterance(id=str(i), audio=path, duration=1.0))
    return made


def stacks(count):
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(5 + count, 4, generator=generator) for _ in range(3)]


def filled(folder, utterances, dtype="float32"):
    store = Store(folder, {"a": 1}, SPEC, dtype)
    with store.writer() as writer:
        for i, u in enumerate(utterances):
            writer.add(u, stacks(i))
    return store


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2)]
)
def test_what_is_written_is_read(tmp_path, utterances, dtype, error):
    filled(tmp_path / "s", utterances, dtype)
    store = Store(tmp_path / "s", {"a": 1}, SPEC, dtype)
    assert store.missing(utterances) == []
    batch = store.batch([utterances[3], utterances[0]])
    assert batch.lengths.tolist() == [8, 5]
    assert batch.spec == SPEC
    assert batch.layers[0].dtype == torch.float32
    for layer, expected in zip(batch.layers, stacks(3), strict=True):
        torch.testing.assert_close(layer[0], expected, atol=error, rtol=error)
    assert (batch.layers[1][1, 5:] == 0).all()
    assert store.frames(utterances[2]) == 7


def test_spans_of_frames_are_read_exactly(tmp_path, utterances):
    store = filled(tmp_path / "s", utterances)
    batch = store.batch([utterances[3], utterances[0]], [slice(2, 6), slice(0, 5)])
    assert batch.lengths.tolist() == [4, 5]
    for layer, long, short in zip(batch.layers, stacks(3), stacks(0), strict=True):
        assert torch.equal(layer[0, :4], long[2:6])
        assert torch.equal(layer[1], short)


def test_one_layer_is_read_without_the_others(tmp_path, utterances):
    store = filled(tmp_path / "s", utterances)
    for index, expected in enumerate(stacks(2)):
        torch.testing.assert_close(store.layer(utterances[2], index), expected)


def test_only_what_is_missing_is_asked_for(tmp_path, utterances):
    filled(tmp_path / "s", utterances[:2])
    store = Store(tmp_path / "s", {"a": 1}, SPEC, "float32")
    assert store.missing([*utterances, utterances[3]]) == utterances[2:]


def test_other_settings_have_another_store(tmp_path, utterances):
    filled(tmp_path / "s", utterances)
    for about, dtype in (({"a": 2}, "float32"), ({"a": 1}, "float16")):
        assert Store(tmp_path / "s", about, SPEC, dtype).missing(utterances) == utterances


def test_changed_audio_or_span_is_missing(tmp_path, utterances):
    store = filled(tmp_path / "s", utterances)
    first = utterances[0]
    assert store.missing([Utterance(id="0", audio=first.audio, duration=0.5)])
    soundfile.write(first.audio, np.ones(16000) / 2, 16000)
    os.utime(first.audio, ns=(1, 1))
    assert store.missing([first]) == [first]


def test_a_writer_that_stops_leaves_whole_shards_only(tmp_path, utterances):
    store = Store(tmp_path / "s", {"a": 1}, SPEC, "float32")
    writer = store.writer()
    writer.add(utterances[0], stacks(0))
    writer.flush()
    writer.add(utterances[1], stacks(1))
    writer.__exit__(RuntimeError, RuntimeError("power cut"), None)
    again = Store(tmp_path / "s", {"a": 1}, SPEC, "float32")
    assert again.missing(utterances) == utterances[1:]


def test_colleagues_may_read_what_the_umask_lets_them(tmp_path, utterances):
    before = os.umask(0o027)
    try:
        store = filled(tmp_path / "s", utterances)
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in store.folder.iterdir()}
    assert modes == {".json": 0o640, ".safetensors": 0o640}


def test_a_damaged_shard_is_named(tmp_path, utterances):
    store = filled(tmp_path / "s", utterances)
    (shard,) = store.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(RunError, match="is damaged"):
        Store(tmp_path / "s", {"a": 1}, SPEC, "float32")


def test_bytes_are_known_before_anything_is_written(tmp_path):
    store = Store(Path(tmp_path), {}, StackSpec(13, 768, 50.0), "float16")
    assert store.bytes_for(3600) == 3600 * 50 * 13 * 768 * 2
