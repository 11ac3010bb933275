"""Every snippet of README and docs runs, on small encoders and a corpus of tones."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from snippets import ROOT, Block, Page, blocks, commands, forget, parse
from speechfuse.build import read_recipe
from speechfuse.data.manifests import prepare
from speechfuse.train import train_run

RAN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("tutorial.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *sorted((ROOT / "docs" / "methods").glob("*.md")),
]
PARSED = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in RAN]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def prepared(tiny_corpus, encoder, tmp_path_factory):
    """What pages take for granted: a corpus, two encoders, trained runs, recordings."""
    folder = tmp_path_factory.mktemp("pages")
    for name, architecture in {"hubert-base": "hubert", "whisper-base": "whisper"}.items():
        shutil.copytree(encoder(architecture), folder / "encoders" / name)
    clips = sorted(tiny_corpus.parent.glob("s[67]*.wav"))
    (folder / "calls").mkdir()
    for clip in clips[:3]:
        shutil.copy(clip, folder / "calls")
    for name in ("clip.wav", "call.wav", "clip.mp3"):
        shutil.copy(clips[0], folder / name)
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(tiny_corpus.parent / row["audio"])
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(tiny_corpus, Path("corpora/mine"))
        heads = {
            "asr": {"kind": "ctc", "project": 16, "lstm_dim": 16, "dropout": 0.0},
            "emotion": {"kind": "classifier"},
            "verification": {"kind": "speaker", "embedding_dim": 8},
        }
        recipe = {
            "seed": 1,
            "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
            "fusion": {"interface": {"kind": "weighted_sum"}},
            "tasks": {name: {"corpus": "corpora/mine", "head": h} for name, h in heads.items()},
            "training": {
                "steps": 500,
                "batch_seconds": 4,
                "learning_rate": 1e-2,
                "evaluate_every": 500,
                "interleave": {"asr": 8, "emotion": 1, "verification": 1},
            },
        }
        train_run(read_recipe(recipe), folder / "runs" / "a")
    quickstart = folder / "runs" / "quickstart" / "both-weighted-sums-concat" / "seed7"
    shutil.copytree(folder / "runs" / "a", quickstart)
    shutil.copytree(folder / "corpora" / "mine", folder / "corpora" / "synthetic")
    for number, clip in enumerate(clips[:2]):
        place = folder / "corpora" / "synthetic" / "audio" / "test" / f"test00-0{number}.flac"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place)
    return folder


@pytest.fixture
def workspace(prepared, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    yield folder
    forget(folder)


@pytest.mark.recipe
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RAN, ids=name_of)
def test_every_snippet_runs(page, workspace):
    at_work = Page(workspace)
    for block in blocks(page):
        at_work.run(block)


@pytest.mark.parametrize("page", [*RAN, *PARSED], ids=name_of)
def test_every_command_is_one(page):
    for block in blocks(page):
        if block.language in ("sh", "") and block.mark != "not checked":
            for words in commands(block):
                if "speechfuse" in words:
                    parse(words, block.place)


def test_the_readme_has_one_picture_and_a_command_at_once():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines.index("```sh") < 25
    assert sum(line.startswith("![") for line in lines) == 1


@pytest.mark.parametrize("page", [*RAN, *PARSED], ids=name_of)
def test_every_link_to_a_file_leads_to_one(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("python", "assert 1 == 2", "AssertionError"),
        ("python", "speechfuse.load('runs/a')", "NameError"),
        ("sh", "speechfuse trane recipe.yaml", "no command trane"),
        ("sh", "speechfuse plan r.yaml --hours x", "--hours x"),
        ("sh", "speechfuse evaluate runs/none", "evaluate runs/none"),
        ("sh", "speechfuse sweep recipes/none.yaml", "no file recipes/none.yaml"),
        ("sh", "torchrun --nproc-per-node 8 speechfuse train r.yaml --outt x", "--outt"),
        ("sh", "make quickstrat", "quickstrat"),
        ("sh", "pip install 'speechfuse[demmo]'", "demmo"),
        ("sh", "rm -rf runs", "rm is not known here"),
        ("yaml", "upstreams: {mel: {kind: filterbanc}}\nfusion: {}\ntasks: {}", "filterbanc"),
        ("yaml", "training: {steps: 5}", "a part of which recipe"),
    ],
)
def test_a_snippet_that_is_wrong_fails(workspace, language, text, message):
    with pytest.raises(AssertionError, match=f"(?s)README.md:1: .*{re.escape(message)}"):
        Page(workspace).run(Block("README.md", 1, language, None, None, text))
