import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from speechfuse.cache import claims
from speechfuse.cache.shards import HOST
from speechfuse.errors import DataError


def test_one_at_a_time_has_a_shard(tmp_path):
    shard = tmp_path / "a.safetensors"
    with claims.claimed(shard) as mine, claims.claimed(shard) as too:
        assert (mine, too) == (True, False)
    assert list(tmp_path.iterdir()) == []
    with claims.claimed(shard) as again:
        assert again


def test_claims_of_the_dead_and_the_silent_count_for_nothing(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    shard, path = tmp_path / "a.safetensors", tmp_path / "a.claim"
    for who, age, free in [
        ([HOST, gone.pid], 0, True),
        ([HOST, os.getpid()], 0, False),
        (["other", 1], 0, False),
        (["other", 1], claims.STALE + 1, True),
    ]:
        path.write_text(json.dumps(who))
        os.utime(path, (time.time() - age,) * 2)
        with claims.claimed(shard) as mine:
            assert mine is free, who
        path.unlink(missing_ok=True)
    path.write_text("brok")
    with claims.claimed(shard) as mine:
        assert not mine
    claims.sweep_claims(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    claims.sweep_claims(tmp_path)
    assert not path.exists()


def shows_life(path):
    """Whether somebody touches a file within seconds."""
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.stat().st_mtime > 0


def test_a_claim_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    with claims.claimed(tmp_path / "a.safetensors"):
        path = tmp_path / "a.claim"
        assert shows_life(path)


def test_a_full_disk_leaves_no_claim(tmp_path, monkeypatch):
    opened = Path.open

    def full(path, *mode):
        file = opened(path, *mode)
        file.write = lambda _: os.truncate("/dev/full/none", 0)  # any OSError
        return file

    monkeypatch.setattr(Path, "open", full)
    with (
        pytest.raises(DataError, match=r"cannot write .*a\.claim.*make room"),
        claims.claimed(tmp_path / "a.safetensors"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_in_which_nothing_was_written_holds_for_seconds(tmp_path):
    path = tmp_path / "a.claim"
    path.touch()
    with claims.claimed(tmp_path / "a.safetensors") as mine:
        assert not mine
    os.utime(path, (time.time() - claims.UNWRITTEN - 1,) * 2)
    with claims.claimed(tmp_path / "a.safetensors") as mine:
        assert mine


def test_of_two_who_saw_no_claim_one_has_it(tmp_path):
    path = tmp_path / "a.claim"
    assert [claims._take(path) for _ in range(2)] == [True, False]
