"""Toy data and encoders that every test may use: seeded, offline, in milliseconds."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from architectures import ARCHITECTURES
from speechfuse.types import LayerStack
from three_tasks import three_tasks

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell begins what is in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stress", action="store_true", help="all kills and mutations, not a sample")


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often a process is killed at a random moment."""
    return 200 if request.config.getoption("--stress") else 10


@pytest.fixture(scope="session")
def mutations(request: pytest.FixtureRequest) -> int:
    """How many times a file is damaged at random."""
    return 2000 if request.config.getoption("--stress") else 40


@pytest.fixture(scope="session")
def harmed_sounds(request: pytest.FixtureRequest) -> int:
    """How many recordings of all forms together are damaged at random."""
    return 10_000 if request.config.getoption("--stress") else 200


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny random encoder of an architecture, made once."""
    root = tmp_path_factory.mktemp("encoders")

    def make(name: str) -> Path:
        folder = root / name.replace(" ", "-")
        if not folder.exists():
            _make_encoder(name, folder)
        return folder

    return make


def _make_encoder(name: str, folder: Path) -> None:
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    config_class, changes, extractor = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**changes)
    torch.manual_seed(len(name))
    model = transformers.AutoModel.from_config(config)
    for buffer in model.buffers():
        if buffer.dim() == 1 and buffer.is_floating_point():  # a batch norm that does something
            buffer.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    getattr(transformers, extractor)().save_pretrained(folder)


@pytest.fixture
def stack() -> Callable[..., LayerStack]:
    """A random stack: layers, lengths, width and rate as asked, padding filled with garbage."""

    def make(
        layers: int = 5,
        lengths: tuple[int, ...] = (7, 4),
        dim: int = 24,
        rate: float = 50.0,
        seed: int = 0,
        garbage: float = 1e3,
    ) -> LayerStack:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.tensor(lengths)
        hidden = torch.randn(layers, len(lengths), max(lengths), dim, generator=generator)
        hidden = hidden.transpose(0, 1).contiguous().transpose(0, 1)  # not contiguous
        for row, size in enumerate(lengths):
            hidden[:, row, size:] = garbage
        return LayerStack(tuple(hidden), sizes, rate)

    return make


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of tones: 8 speakers (pitch), 2 emotions (loudness), texts of two words.

    Each word is a burst of one frequency, so that recognition can be learned in seconds.
    """
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    words = {"low": 300.0, "mid": 900.0, "top": 2400.0}
    rows = []
    for speaker in range(8):
        for index in range(8):
            text = [list(words)[i] for i in random.integers(0, 3, size=2)]
            emotion = ("calm", "loud")[index % 2]
            pieces = []
            for word in text:
                time = np.arange(2400) / 16000
                tone = np.sin(2 * np.pi * words[word] * time)
                voice = 0.5 * np.sin(2 * np.pi * (120 + 25 * speaker) * time)
                pieces += [0.7 * tone + voice, np.zeros(800)]
            level = 0.05 if emotion == "calm" else 0.4
            samples = level * np.concatenate(pieces) + 0.002 * random.standard_normal(6400)
            name = f"s{speaker}-{index}"
            soundfile.write(folder / f"{name}.wav", samples, 16000)
            split = "train" if speaker < 4 else "dev" if speaker < 6 else "test"
            row = {"id": name, "audio": f"{name}.wav", "text": " ".join(text), "split": split}
            rows.append(row | {"speaker": f"s{speaker}", "emotion": emotion})
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "manifest.jsonl").write_text(lines + "\n")
    return folder / "manifest.jsonl"


@pytest.fixture(scope="session")
def answering(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with a head for words, one for emotions and one for voices."""
    from speechfuse.build import read_recipe
    from speechfuse.train import train_run

    folder = tmp_path_factory.mktemp("answering")
    corpus = str(tiny_corpus)
    heads = {
        "asr": {"kind": "ctc", "project": 16, "lstm_dim": 16},
        "emotion": {"kind": "classifier"},
        "verification": {"kind": "speaker", "embedding_dim": 8},
    }
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {name: {"corpus": corpus, "head": head} for name, head in heads.items()},
        "training": {"steps": 4, "batch_seconds": 4},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_run(read_recipe(recipe), folder / "run")
    return folder / "run"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where corpora, stores and runs are made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tone_recipe(tiny_corpus: Path) -> dict[str, object]:
    """A recipe that trains three tasks on the tones in seconds."""
    return three_tasks(tiny_corpus, steps=12)
