"""A run as graphs that run without the library, and what cannot become one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from torch import nn
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from typer.testing import CliRunner

import speechfuse
from speechfuse import catalog, predict
from speechfuse.alignment import aligned_specs
from speechfuse.build import read_recipe
from speechfuse.cli import app
from speechfuse.decoding import driven
from speechfuse.errors import ExportError, RunError
from speechfuse.export import measuring, onnx_files, onnx_graphs
from speechfuse.export.graph import _stack, head_outputs
from speechfuse.export.loading import load_source
from speechfuse.export.package import default_folder, export_run
from speechfuse.export.run import (
    Package,
    align,
    best_path,
    prefix_beam,
    rounded,
    stretches,
    subtitles,
    turns,
)
from speechfuse.fusion import MergeFirst
from speechfuse.heads import ctc_align, ctc_search
from speechfuse.heads.diarization import _filtered, _turns
from speechfuse.heads.text import Text
from speechfuse.pipeline.answers import Word
from speechfuse.pipeline.recordings import cut
from speechfuse.recipe import merged
from speechfuse.train import train_run
from speechfuse.types import Frames, LayerStack, StackSpec, Waveforms
from speechfuse.upstreams.huggingface import HuggingFace
from test_harmonifuse import TINY
from test_interfaces import made

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

pytest.importorskip("onnxscript", reason="pip install 'speechfuse[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'speechfuse[export]'")

NEEDED = ("numpy", "soundfile", "soxr", "onnxruntime", "tokenizers")  # what a package may import
THEIRS = ("_cffi_backend", "_soundfile", "_soundfile_data", "typing_extensions")  # and these need
ONLY = f"""
import sys

ALLOWED = {{*sys.stdlib_module_names, *{NEEDED + THEIRS}}}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {{name!r}}")


sys.meta_path.insert(0, Absent())
"""


def run_alone(folder: Path, tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """run.py where nothing can be imported that it does not ask for."""
    (tmp_path / "sitecustomize.py").write_text(ONLY)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)


def same(found, wanted):
    """Whether an answer is the library's, its numbers as good as."""
    if isinstance(wanted, dict):
        return {*found} == {*wanted} and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, float):
        return found == pytest.approx(wanted, abs=1.5e-4)  # the last of four places
    return found == wanted


def in_onnx(module: nn.Module, inputs, axes, tmp_path: Path):
    """A call of the same module in ONNX Runtime, at any size."""
    names = [f"in{i}" for i in range(len(inputs))]
    with torch.no_grad():
        outputs = [f"out{i}" for i in range(len(module(*inputs)))]
    program = onnx_graphs.traced(module, inputs, axes)
    onnx_files.save({"one.onnx": onnx_graphs.to_onnx(program, names, outputs)}, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"))

    def call(*given):
        return session.run(None, dict(zip(names, (one.numpy() for one in given), strict=True)))

    return call


@pytest.fixture(scope="module")
def package(answering, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "package"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(answering.parent)
        export_run(answering, folder)
    return folder


def test_a_package_answers_as_the_run_does_where_torch_is_not(
    package, answering, tiny_corpus, tmp_path
):
    names = [str(tiny_corpus.parent / f"s7-{i}.wav") for i in range(3)]
    done = run_alone(package, tmp_path, *names, "missing.wav", "--format", "json")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("missing.wav\terror\t")
    model = speechfuse.load(answering, device="cpu")
    for line, name in zip(done.stdout.splitlines(), names, strict=True):
        wanted = model(name).to_dict()
        assert wanted["results"]["asr"]["words"]
        assert same(json.loads(line), wanted)
    asked = run_alone(package, tmp_path, names[0], "--task", "x")
    assert asked.returncode == 2
    assert "no task 'x'; it has: asr, emotion, verification" in asked.stderr


@pytest.mark.parametrize("form", ["text", "csv", "srt"])
def test_lines_are_those_of_predict(form, package, answering, tiny_corpus, tmp_path):
    names = [str(tiny_corpus.parent / f"s6-{i}.wav") for i in range(1 if form == "srt" else 3)]
    asked = [*names, "--task", "emotion", "--task", "asr", "--format", form]
    done = run_alone(package, tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout == CliRunner().invoke(app, ["predict", str(answering), *asked]).stdout
    if form == "srt":
        none = run_alone(package, tmp_path, names[0], "--task", "emotion", "--format", "srt")
        assert none.returncode == 2
        assert "no times of words for emotion: subtitles need a head with CTC" in none.stderr
        two = run_alone(package, tmp_path, *names, *names, "--format", "srt")
        assert two.returncode == 2
        assert "subtitles are of one recording, found 2" in two.stderr


@pytest.mark.parametrize("name", ["torch", "scipy", "librosa", "speechfuse", "pydantic"])
def test_what_a_package_must_not_need_is_not_there(name, package, tmp_path):
    shutil.copytree(package, tmp_path / "more")
    script = tmp_path / "more" / "run.py"
    script.write_text(
        script.read_text().replace("import json\n", f"import json\nimport {name}\n", 1)
    )
    done = run_alone(tmp_path / "more", tmp_path, "a.wav")
    assert f"No module named '{name}'" in done.stderr


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_a_package_answers_in_an_environment_of_its_own(
    request, workspace, tone_recipe, tiny_corpus
):
    """Installed from the package index; texts are pieces of words, so all five are imported."""
    if not request.config.getoption("--stress"):
        pytest.skip("installs packages; make stress does")
    recipe = merged(tone_recipe, {"tasks": {"asr": {"units": "bpe", "vocabulary_size": 20}}})
    train_run(read_recipe(recipe), workspace / "run")
    export_run(workspace / "run", workspace / "package", batches=2)
    subprocess.run([sys.executable, "-m", "venv", "alone"], check=True, timeout=300)
    python = str(workspace / "alone" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--retries", "0", "--timeout", "15", *NEEDED]
    done = subprocess.run(install, capture_output=True, text=True, timeout=500)
    if "Could not find a version" in done.stderr:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    bare = {"capture_output": True, "text": True, "timeout": 200, "env": {}}
    for name in ("torch", "scipy", "speechfuse"):
        looked = subprocess.run([python, "-c", f"import {name}"], **bare)
        assert f"No module named '{name}'" in looked.stderr
    clips = [str(tiny_corpus.parent / f"s7-{i}.wav") for i in range(4)]
    command = [python, str(workspace / "package" / "run.py"), *clips, "--format", "json"]
    done = subprocess.run(command, **bare)
    assert done.returncode == 0, done.stderr
    model = speechfuse.load(workspace / "run", device="cpu")
    for line, clip in zip(done.stdout.splitlines(), clips, strict=True):
        assert same(json.loads(line), model(clip).to_dict())


@pytest.mark.recipe
@pytest.mark.timeout(600)
def test_adapters_in_an_encoder_are_exported(workspace, tiny_corpus, encoder, tmp_path):
    pytest.importorskip("peft", reason="pip install 'speechfuse[lora]'")
    recipe = {
        "upstreams": {
            "tiny": {"kind": "huggingface", "source": str(encoder("hubert")), "layers": [0, 1]}
        },
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {"emotion": {"corpus": str(tiny_corpus), "head": {"kind": "classifier"}}},
        "training": {
            "steps": 3,
            "batch_seconds": 4,
            "learning_rate": 0.05,
            "lora": {"rank": 2, "alpha": 40000},
        },
    }
    train_run(read_recipe(recipe), workspace / "run")
    report = export_run(workspace / "run", workspace / "out", batches=3)
    assert report["parity"]["tasks"]["emotion"]["largest"] < 1e-4
    clip = str(tiny_corpus.parent / "s7-1.wav")
    done = run_alone(workspace / "out", tmp_path, clip, "--format", "json")
    model = speechfuse.load(workspace / "run", device="cpu")
    wanted = model(clip)["emotion"].scores
    assert same(json.loads(done.stdout), model(clip).to_dict())
    for name, weights in model.model.named_parameters():
        if ".lora_B" in name:
            weights.data.zero_()
    assert model(clip)["emotion"].scores != pytest.approx(wanted, abs=1e-4)  # they do something


def test_a_package_holds_its_weights_once_and_says_how_well_it_does(package):
    report = json.loads((package / "report.json").read_text())
    assert report["parity"]["batches"] == 12
    assert report["parity"]["clips"] > 12
    for one in report["parity"]["tasks"].values():
        assert 0 < one["largest"] < 1e-4
        assert one["equal"] == one["decisions"]
    assert report["parity"]["tasks"]["asr"]["decisions"] == report["parity"]["clips"]
    assert {"library", "onnx"} < {*report["seconds"]}
    assert report["bytes"]["weights.safetensors"] > report["bytes"]["model.onnx"] > 0
    with safe_open(package / "weights.safetensors", "np") as file:
        assert sum(file.get_tensor(name).nbytes for name in file.keys()) > 100_000  # noqa: SIM118
    for path in package.iterdir():
        assert str(Path(speechfuse.__file__).parent).encode() not in path.read_bytes(), path
    text = (package / "README.md").read_text()
    assert "| asr |" in text
    assert "python run.py clip.wav --task asr" in text


def test_a_graph_that_differs_from_the_run_is_an_error(package, answering, monkeypatch):
    monkeypatch.setattr(measuring, "TOLERANCE", 1e-9)
    with pytest.raises(ExportError, match=r"differs from the run by .* more than 1e-09"):
        measuring.compared(load_source(answering), package, {}, 2)


def test_long_recordings_are_cut_as_the_library_cuts_them(package, answering, tmp_path):
    random = np.random.default_rng(0)
    loud = np.repeat(random.uniform(0.01, 0.5, 45), 16000)
    samples = (loud * random.standard_normal(len(loud))).astype(np.float32)
    pieces = [piece for _, piece in cut(iter([samples]), 20.0)]
    assert len(pieces) > 2
    assert [*map(len, stretches(samples, 20.0))] == [*map(len, pieces)]
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    found = Package(package)(tmp_path / "long.wav")
    wanted = speechfuse.load(answering, device="cpu")(tmp_path / "long.wav").to_dict()
    assert wanted["results"]["asr"]["words"][-1]["start"] > 20
    assert same(rounded(found), wanted["results"])


def test_tokens_and_turns_are_found_as_heads_find_them():
    scores = np.eye(4)[[0, 2, 2, 0, 2, 3, 0]]
    assert best_path(scores) == [2, 2, 3]
    random = torch.Generator().manual_seed(0)
    for frames in (1, 4, 40):
        for median in (1, 3, 11):
            active = torch.rand(frames, 3, generator=random) > 0.4
            wanted = _turns(_filtered(active, median), 50.0)
            assert turns(active.numpy(), median, 50.0) == wanted


def test_texts_are_searched_and_aligned_as_the_library_does():
    random = np.random.default_rng(0)
    for sharpness in (0.1, 2.0, 8.0):
        for frames in (1, 2, 3, 7, 40):
            scores = sharpness * random.standard_normal((frames, 5))
            rows = torch.from_numpy(scores).float().log_softmax(-1)
            for size in (1, 2, 5, 16):
                assert prefix_beam(rows.numpy(), size) == ctc_search.prefix_beam(rows, size)
            for many in (0, 1, 2, 3, 7):
                ids = random.integers(1, 5, many).tolist()
                found, wanted = align(rows.numpy(), ids), ctc_align.align(rows, ids)
                assert (found is None) == (wanted is None)
                for one, other in zip(found or (), wanted or (), strict=True):
                    assert one == pytest.approx(tuple(other), abs=1e-12)


class Table(PreTrainedModel, GenerationMixin):
    """Writes by a table alone: scores of the next token by how many there are, and by the last."""

    def __init__(self, scores) -> None:
        super().__init__(LlamaConfig(vocab_size=scores.shape[-1]))
        self.scores = nn.Parameter(torch.from_numpy(scores))

    def forward(self, input_ids, **options):
        logits = self.scores[input_ids.shape[1] - 1, input_ids[:, -1]]
        return CausalLMOutputWithPast(logits=logits[:, None])


def test_a_beam_is_that_of_the_library_whatever_ends_in_it():
    random = np.random.default_rng(0)
    cut = set()
    for number in range(120):
        tokens, most = int(random.integers(2, 7)), int(random.integers(1, 9))
        scores = random.standard_normal((most + 1, tokens, tokens)).astype(np.float32)
        scores[..., 0] += random.uniform(-2, 3)  # how soon texts end
        head = Text(4, num_tokens=tokens, max_tokens=most, beam_size=1 + number % 5)
        head.length_penalty = float(random.choice([-0.5, 0.0, 0.6, 1.0, 2.0]))

        def decoder(feeds, outputs, scores=scores):
            place = feeds["cache"].shape[4]
            assert feeds["valid"].shape == (len(feeds["tokens"]), place)
            cache = np.pad(feeds["cache"], [(0, 0)] * 4 + [(0, 1), (0, 0)])
            return {"logits": scores[place, feeds["tokens"]], "cache_out": cache}

        (wanted,) = driven(Table(scores), torch.ones(1, 1, dtype=torch.bool), head, use_cache=False)
        package = Package.__new__(Package)
        names = ("max_tokens", "beam_size", "length_penalty")
        package.tasks = {"asr": {"decoder": "d", **{name: getattr(head, name) for name in names}}}
        package._graphs = {"d": decoder}
        found = {
            "asr.logits": scores[0, :1],
            "asr.valid": np.ones((1, 1), bool),
            "asr.cache": np.zeros((2, 1, 1, 1, 1, 1)),
        }
        assert package._written("asr", found) == wanted.ids, number
        cut.add(wanted.cut)
    assert cut == {False, True}


def test_captions_end_where_those_of_predict_end():
    random = np.random.default_rng(0)
    ends = np.cumsum(random.choice([0.02, 0.3, 0.8, 1.0, 7.0, 900.0], 400))
    words = [
        Word("w" * int(random.integers(1, 30)), float(end) - 0.01, float(end), 1.0) for end in ends
    ]
    assert subtitles([word._asdict() for word in words]) == predict.subtitles(words)
    assert subtitles([]) == predict.subtitles([]) == ""


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_words_and_beams_of_every_kind_of_token_are_those_of_the_run(
    workspace, tone_recipe, tiny_corpus, tmp_path
):
    """Clips down to the shortest, of which too few frames are left for a word, and a long one."""
    Path("lexicon").write_text("LOW L OW\nMID M IH D\nTOP T AA P\n")
    corpus, beam = str(tiny_corpus), {"search": "beam", "beam_size": 4}
    small = {"kind": "ctc", "project": 16, "lstm_dim": 16}
    change = {
        "pieces": {"units": "bpe", "vocabulary_size": 20, "head": {**small, "join": 2, **beam}},
        "one": {"head": {**small, "search": "beam", "beam_size": 1}},
        "phones": {"kind": "phones", "lexicon": "lexicon", "head": small},
        "letters": {"head": {"kind": "conv_transformer", "dim": 16, "ffn_dim": 16, **beam}},
        "mood": {"kind": "language", "label": "emotion", "head": small},
    }
    recipe = merged(tone_recipe, {"training": {"steps": 10}})
    recipe["tasks"] = {
        name: {"corpus": corpus, "kind": "asr", **one} for name, one in change.items()
    }
    train_run(read_recipe(recipe), workspace / "run")
    report = export_run(workspace / "run", workspace / "out", batches=4)
    assert all(one["equal"] == one["decisions"] for one in report["parity"]["tasks"].values())
    package, model = Package(workspace / "out"), speechfuse.load(workspace / "run", device="cpu")
    random = np.random.default_rng(0)
    heard = dict.fromkeys(change, 0)
    for size in (400, 800, 1600, 5000, 16001, 48000, 600_000):
        loud = np.repeat(random.uniform(0, 0.3, size // 100 + 1), 100)[:size]
        clip = (loud * random.standard_normal(size)).astype(np.float32)
        wanted = model((clip, 16000)).to_dict()["results"]
        assert same(rounded(package(clip)), wanted)
        for task, answer in wanted.items():
            heard[task] += len(answer["words"] or ())
    assert min(heard.values()) > 0, heard


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_eight_bits_are_smaller_and_their_cost_is_measured(answering, tmp_path, monkeypatch):
    monkeypatch.chdir(answering.parent)
    folder = tmp_path / "int8"
    report = export_run(answering, folder, int8=True, batches=2)
    assert report["bytes"]["weights.safetensors"] < report["bytes_float32"]["weights.safetensors"]
    metrics = json.loads((answering / "metrics.json").read_text())
    for split in ("dev", "test"):
        for task, known in metrics[split].items():
            for name, metric in known.items():
                whole = report["scores"]["onnx"][split][task][name]
                assert whole["value"] == pytest.approx(metric["value"], abs=1e-6)
                assert 0 <= report["scores"]["int8"][split][task][name]["value"] <= 2
    text = (folder / "README.md").read_text()
    assert "What 8 bits cost" in text
    assert "depend on its batch" in text
    assert "samples alone" not in text
    monkeypatch.setattr("speechfuse.export.package.export_run", lambda *_, **__: report)
    printed = CliRunner().invoke(app, ["export", str(answering), "--int8"]).stdout
    cost = printed.partition("What 8 bits cost")[2]
    for task in metrics["test"]:
        assert task in cost
    assert re.search(r"s of audio: speechfuse \d\.\d+, float32 \d\.\d+, 8 bits \d\.\d+", printed)
    assert Package(folder)(np.zeros(8000, np.float32), ["emotion"])["emotion"]["label"]


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_a_program_of_torch_takes_any_batch(answering, tmp_path):
    folder = tmp_path / "torch"
    report = export_run(answering, folder, format="torch", batches=5)
    assert all(one["largest"] < 1e-4 for one in report["parity"]["tasks"].values())
    assert {"model.pt2", "lstm.py", "run.py"} < {path.name for path in folder.iterdir()}
    assert str(Path(speechfuse.__file__).parent).encode() not in (folder / "model.pt2").read_bytes()
    clip = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", clip / 10, 16000)
    command = [
        sys.executable,
        str(folder / "run.py"),
        str(tmp_path / "clip.wav"),
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    wanted = speechfuse.load(answering, device="cpu")(str(tmp_path / "clip.wav"))
    assert same(json.loads(done.stdout), wanted.to_dict())


@pytest.mark.recipe
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("form", "head"),
    [
        ("onnx", {}),
        ("onnx", {"ctc": 0.3, "beam_size": 3, "length_penalty": 0.7}),
        ("torch", {"ctc": 0.3, "beam_size": 2}),
    ],
)
def test_harmonifuse_writes_the_same_text_with_its_cache(
    form, head, workspace, tone_recipe, tiny_corpus, tmp_path
):
    """With alpha of an utterance, which the decoder is given, and a prompt in words."""
    change = {
        "fusion": {"interface": {"kind": "gated_encoder"}, "per_task": False},
        "context": {**TINY, "interface": {"kind": "prompt_adaptive", "per": "utterance"}},
        "tasks": {
            "asr": {"units": "characters", "head": {"kind": "text", "max_tokens": 12, **head}},
            "emotion": {"prompts": ["how does it feel", "mood"]},
            "letters": {
                "kind": "asr",
                "corpus": str(tiny_corpus),
                "prompts": ["which letters"],
                "head": {"kind": "ctc", "project": 16, "lstm_dim": 16},
            },
        },
    }
    recipe = merged(tone_recipe, change)
    del recipe["tasks"]["verification"]
    train_run(read_recipe(recipe), workspace / "run")
    report = export_run(workspace / "run", workspace / "out", format=form, batches=6)
    asr = report["parity"]["tasks"]["asr"]
    assert asr["largest"] < 1e-4
    assert asr["equal"] == asr["decisions"] > 6
    names = [str(tiny_corpus.parent / f"s{i}-0.wav") for i in (4, 6)]
    package, model = Package(workspace / "out"), speechfuse.load(workspace / "run", device="cpu")
    random = np.random.default_rng(0)
    clips = [
        (random.standard_normal(n) / 9).astype(np.float32) for n in (800, 9000, 60_000, 700_000)
    ]
    answers = [model((clip, 16000)) for clip in clips]
    for clip, answer in zip(clips, answers, strict=True):
        assert same(rounded(package(clip)), answer.to_dict()["results"])
    assert any(answer["asr"].text for answer in answers)
    assert any(answer["letters"].words for answer in answers)
    assert any(answer["asr"].words for answer in answers) == ("ctc" in head)
    model.model.head_of("asr").search_with(1)
    greedy = [model((clip, 16000))["asr"].text for clip in clips]
    assert (greedy == [answer["asr"].text for answer in answers]) == ("beam_size" not in head)
    for words in ("mood", "how does it feel", "", "är det en fråga? " * 9):
        found = package(names[0], ["emotion"], words)
        assert same(rounded(found), model(names[0], ["emotion"], prompt=words).to_dict()["results"])
    asked = [names[0], "--task", "emotion", "--prompt", "mood", "--format", "json"]
    if form == "onnx":
        done = run_alone(workspace / "out", tmp_path, *asked)
        wanted = model(names[0], ["emotion"], prompt="mood").to_dict()
        assert same(json.loads(done.stdout), wanted)
        assert not same(wanted["results"], model(names[0], ["emotion"]).to_dict()["results"])
        done = run_alone(workspace / "out", tmp_path, *names, "--prompt", "mood")
        assert (
            "asks one task that was trained with some, found asr and emotion and letters"
            in done.stderr
        )


def valid(found, wanted, size):
    """Both, of an utterance's own frames."""
    return found[:size], wanted[:size].numpy()


class Interfaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: made(name, 4, 8) for name in catalog.INTERFACES})
        self.eval().requires_grad_(False)

    def forward(self, hidden, lengths):
        stack = LayerStack(tuple(hidden.unbind(2)), lengths, 50.0)
        return tuple(part(stack, "asr").hidden for part in self.parts.values())


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_every_interface_gives_the_same_in_a_graph(tmp_path):
    module = Interfaces()

    def inputs(*sizes):
        return torch.randn(len(sizes), max(sizes), 4, 8), torch.tensor(sizes)

    call = in_onnx(module, inputs(30, 21, 25), ({0: "b", 1: "t"}, {0: "b"}), tmp_path)
    for sizes in ((9,), (25, 40), (11, 7, 30, 12)):
        given = inputs(*sizes)
        wanted, found = module(*given), call(*given)
        assert len(found) == len(wanted) == len(catalog.INTERFACES)
        for index, (name, part) in enumerate(module.parts.items()):
            many = [1] * len(sizes) if part.pools else sizes
            for row, size in enumerate(many):
                pair = valid(found[index][row], wanted[index][row], size)
                np.testing.assert_allclose(*pair, atol=2e-5, err_msg=name)


class Merges(nn.Module):
    """Every merge of two stacks of other depth and rate."""

    def __init__(self) -> None:
        super().__init__()
        specs = aligned_specs([StackSpec(4, 8, 50.0), StackSpec(3, 8, 40.0)])
        self.fusions = nn.ModuleList()
        for cls in catalog.MERGES.values():
            merge = cls(specs)
            interface = made("weighted_sum", merge.spec.num_layers, merge.spec.dim)
            self.fusions.append(MergeFirst(merge, interface))
        self.eval().requires_grad_(False)

    def forward(self, fine, coarse, lengths):
        stacks = [
            LayerStack(tuple(fine.unbind(2)), lengths, 50.0),
            LayerStack(tuple(coarse.unbind(2)), lengths * 4 // 5, 40.0),
        ]
        found = [fusion(stacks, "asr") for fusion in self.fusions]
        return tuple(one for frames in found for one in (frames.hidden, frames.lengths))


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_every_merge_gives_the_same_in_a_graph(tmp_path):
    module = Merges()

    def inputs(*sizes):
        many = max(sizes)
        fine, coarse = torch.randn(len(sizes), many, 4, 8), torch.randn(len(sizes), many, 3, 8)
        return fine, coarse, torch.tensor(sizes)

    axes = ({0: "b", 1: "t"}, {0: "b", 1: "u"}, {0: "b"})
    call = in_onnx(module, inputs(30, 21, 25), axes, tmp_path)
    for sizes in ((9,), (25, 40), (11, 7, 30, 12)):
        given = inputs(*sizes)
        wanted, found = module(*given), call(*given)
        assert len(found) == len(wanted) == 2 * len(catalog.MERGES)
        for index, merge in enumerate(catalog.MERGES):
            hidden, lengths = wanted[2 * index : 2 * index + 2]
            assert found[2 * index + 1].tolist() == lengths.tolist(), merge
            for row, size in enumerate(lengths.tolist()):
                pair = valid(found[2 * index][row], hidden[row], size)
                np.testing.assert_allclose(*pair, atol=2e-5, err_msg=merge)


class Heads(nn.Module):
    """Every head that reads frames, of a width of 12."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"num_tokens": 6, "num_classes": 3, "slot_sizes": (3, 4)}
        self.heads = nn.ModuleDict()
        for name, cls in catalog.HEADS.items():
            if cls.reads == "frames":
                taken = cls.__init__.__annotations__.keys() & sizes.keys()
                self.heads[name] = cls(12, **{key: sizes[key] for key in taken})
        onnx_graphs_ready(self)

    def forward(self, hidden, lengths):
        frames = Frames(hidden, lengths, 50.0)
        return tuple(one for head in self.heads.values() for one in head_outputs(head, frames))


def onnx_graphs_ready(module: nn.Module) -> None:
    from speechfuse.export.lstm import replace_lstms

    replace_lstms(module)
    module.eval().requires_grad_(False)


@pytest.mark.recipe
@pytest.mark.timeout(900)
def test_every_head_gives_the_same_in_a_graph(tmp_path):
    module = Heads()

    def inputs(*sizes):
        return torch.randn(len(sizes), max(sizes), 12), torch.tensor(sizes)

    call = in_onnx(module, inputs(40, 31, 25), ({0: "b", 1: "t"}, {0: "b"}), tmp_path)
    for sizes in ((9,), (25, 40), (11, 7, 30, 12)):
        given = inputs(*sizes)
        wanted, found = module(*given), call(*given)
        assert len(found) == len(wanted)
        for index, right in enumerate(wanted):
            if right.dim() < 3:
                np.testing.assert_allclose(found[index], right.numpy(), atol=2e-5)
                continue
            lengths = wanted[index + 1].tolist()  # of frames, which a head may have fewer of
            assert min(lengths) > 0
            for row, size in enumerate(lengths):
                pair = valid(found[index][row], right[row], size)
                assert len(pair[0]) == size
                np.testing.assert_allclose(*pair, atol=2e-5)


class Encoder(nn.Module):
    def __init__(self, upstream) -> None:
        super().__init__()
        self.upstream = upstream
        self.eval().requires_grad_(False)

    def forward(self, samples, lengths):
        stack = _stack(self.upstream, Waveforms(samples, lengths, 16000))
        return stack.layers[-1], stack.lengths


@pytest.mark.recipe
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["hubert", "wavlm large", "data2vec", "whisper", "w2v-bert"])
def test_encoders_give_the_frames_of_the_library(name, encoder, tmp_path):
    """One graph each: what torch knows of sizes grows faster than the graph that they are in."""
    exported, library = (HuggingFace(source=str(encoder(name)), layers=[0, 1]) for _ in range(2))
    exported.load()
    library.load()

    def inputs(*sizes):
        rows = torch.zeros(len(sizes), max(sizes))
        for row, size in zip(rows, sizes, strict=True):
            row[:size] = 0.1 * torch.randn(size)
        return rows, torch.tensor(sizes)

    given = inputs(9000, 7001, 8000)
    call = in_onnx(Encoder(exported), given, ({0: "b", 1: "s"}, {0: "b"}), tmp_path)
    for sizes in ((720,), (16000, 5000), (3000, 9123, 1201)):
        given = inputs(*sizes)
        hidden, lengths = call(*given)
        stack = library(Waveforms(*given, 16000))
        assert lengths.tolist() == stack.lengths.tolist()
        for row, size in enumerate(lengths.tolist()):
            pair = valid(hidden[row], stack.layers[-1][row], size)
            np.testing.assert_allclose(*pair, atol=1e-4)


def test_what_cannot_be_exported_is_said_and_leaves_nothing(answering, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="is no run folder"):
        export_run(tmp_path, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="is there already"):
        export_run(answering, tmp_path / "there")
    with pytest.raises(ExportError, match="--int8 is for --format onnx"):
        export_run(answering, tmp_path / "out", format="torch", int8=True)
    shutil.copytree(answering, tmp_path / "untrained")
    (tmp_path / "untrained" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="is not trained yet"):
        export_run(tmp_path / "untrained", tmp_path / "out")
    monkeypatch.setattr(onnx_graphs, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ExportError, match=r"needs onnx; pip install 'speechfuse\[export\]'"):
        export_run(answering, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "untrained"}


def test_a_part_that_asks_for_a_number_is_refused():
    class Asks(nn.Module):
        def forward(self, hidden):
            return (hidden[:, : int(hidden[0, 0] * 0 + 1)],)

    class Counts(nn.Module):
        def forward(self, hidden):
            return (sum(hidden[:, i] for i in range(hidden.shape[1])),)

    for module in (Asks(), Counts()):
        with pytest.raises(ExportError, match="no graph can be made of this run"):
            onnx_graphs.traced(module, (torch.randn(2, 5),), [{0: "b", 1: "t"}])


def test_a_package_stands_beside_its_run_if_no_place_is_named(tmp_path):
    assert default_folder(tmp_path / "a", "onnx", int8=False) == tmp_path / "a-onnx"
    assert default_folder(tmp_path / "a", "onnx", int8=True) == tmp_path / "a-onnx-int8"
    assert default_folder(tmp_path / "a", "torch", int8=False) == tmp_path / "a-torch"
