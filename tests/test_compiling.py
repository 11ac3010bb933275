"""Compiled encoders against the same ones as they are."""

import os
import subprocess
import sys

import pytest
import torch

from speechfuse.audio import pad_clips
from speechfuse.errors import UpstreamError
from speechfuse.upstreams import huggingface
from speechfuse.upstreams.compiling import compiler_failure
from speechfuse.upstreams.huggingface import HuggingFace

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # the compiler's own imports
LENGTHS = ([7000], [16000, 5000], [9100], [8000, 8000], [30000, 12000, 1200], [1100])  # samples


def upstream(folder, **options):
    return HuggingFace(source=str(folder), **options)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing was compiled before in this process."""
    torch.compiler.reset()
    compiler_failure.cache_clear()
    yield
    torch.compiler.reset()
    compiler_failure.cache_clear()


@pytest.mark.recipe
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "compute", "tolerance"),
    [
        ("hubert", "float32", 1e-5),
        ("wavlm large", "float32", 1e-5),
        ("wav2vec2 adapter", "float32", 1e-5),
        ("whisper", "bfloat16", 2e-2),
    ],
)
def test_one_graph_gives_the_same_states_in_all_blocks_and_lengths(
    encoder, monkeypatch, name, compute, tolerance
):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(huggingface, "has_bfloat16", lambda: True)
    exact = upstream(encoder(name), compute=compute)
    part = upstream(encoder(name), compute=compute, compile=True)
    assert part.manner() != exact.manner()
    part.load()
    counters.clear()
    for sizes in LENGTHS:
        wav = pad_clips([0.1 * torch.randn(size) for size in sizes])
        for one, other in zip(exact(wav).layers, part(wav).layers, strict=True):
            assert (one - other).abs().max() <= tolerance * one.abs().max()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.recipe
def test_a_machine_without_a_compiler_is_told_what_is_missing(tmp_path):
    """In a process of its own: torch remembers what it did not find."""
    asks = "from speechfuse.upstreams.compiling import compiler_failure; print(compiler_failure())"
    changes = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", asks],
        env=os.environ | changes,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No working C++ compiler" in done.stdout
    assert "no-such-compiler" in done.stdout
    assert done.stdout.count("\n") == 1


def test_such_a_machine_refuses(encoder, monkeypatch):
    monkeypatch.setattr(huggingface, "compiler_failure", lambda: "no compiler called g++")
    with pytest.raises(UpstreamError, match=r"fails here: no compiler called g\+\+.*or leave comp"):
        upstream(encoder("hubert"), compile=True).load()


def test_blocks_that_are_transformers_own_refuse(encoder):
    for name, policy in (("hubert", "padded"), ("w2v-bert", "masked")):
        with pytest.raises(UpstreamError, match="leave compile out"):
            upstream(encoder(name), compile=True, length_policy=policy)
