import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from speechfuse.cache import shards
from speechfuse.errors import DataError, RunError


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(DataError, match=r"No space left.*what was finished is kept"):
        shards.write_shard(tmp_path / "a.safetensors", {"k": torch.zeros(1, 2, 3)}, [0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.recipe
def test_a_file_that_may_not_grow_leaves_nothing_half_written(tmp_path):
    """The system's own limit, as a full disk has it."""
    code = """
import resource, sys, torch
from pathlib import Path
from speechfuse.cache import shards
from speechfuse.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    shards.write_shard(Path("a.safetensors"), {"k": torch.zeros(1, 999, 99)}, [0])
except DataError as error:
    print(error)
"""
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "cannot write a.safetensors" in done.stdout, done
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_of_the_dead_are_swept(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {
        "dead": f"a.{shards.HOST}.{gone.pid}.part",
        "alive": f"b.{shards.HOST}.{os.getpid()}.part",
        "elsewhere": f"c.other.{gone.pid}.part",
        "old": f"d.other.{gone.pid}.part",
    }
    for name in names.values():
        (tmp_path / name).touch()
    killed = tmp_path / f"e.{shards.HOST}.{gone.pid}.part"
    killed.mkdir()
    (killed / ".tmp1234").touch()
    (tmp_path / "foo.part").touch()  # not one of ours
    os.utime(tmp_path / names["old"], (0, 0))
    shards.sweep_parts(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {names["alive"], names["elsewhere"], "foo.part"}


def test_containers_of_one_name_are_told_apart(monkeypatch):
    """Each numbers its processes by itself, so that the number of another one says nothing."""
    assert shards._host() == shards.HOST
    assert "." not in shards.HOST
    monkeypatch.setattr(Path, "readlink", lambda path: "pid:[1]")
    assert shards._host() != shards.HOST

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "readlink", missing)
    assert shards._host()  # elsewhere than on Linux


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    shards.write_text(tmp_path / "a.json", "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write in .*No space left"):
        shards.write_text(tmp_path / "a.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_shard_that_is_gone_is_named(tmp_path):
    with pytest.raises(RunError, match=r"a\.safetensors is damaged or gone"):
        shards.open_shard(tmp_path / "a.safetensors")


def test_silence_is_restored_from_int8(tmp_path):
    kept = shards.stored(torch.zeros(2, 3, 4), "int8")
    out = torch.ones(2, 3, 4)
    shards.restored(kept[""], kept[shards.SCALE], out)
    assert (out == 0).all()
