"""Snippets of README and docs run on small encoders and tones, or are parsed if they take long.

Parsed alone: select, probe, sweep, quickstart, export, pseudo-label and bench, which take minutes
even here, and the pages of measurements, whose runs take hours. `serve` is begun on a free port,
where curl asks it if there is one.
"""

import json
import re
import shutil
import sys
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from snippets import ROOT, Block, Page, blocks, commands, forget, parse
from speechfuse.build import read_recipe
from speechfuse.data.manifests import prepare
from speechfuse.doctor import libraries
from speechfuse.train import train_run
from three_tasks import LONG, three_tasks

RAN = [
    ROOT / "README.md",
    ROOT / "docs" / "first_minute.md",
    ROOT / "docs" / "tutorial.md",
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
        train_run(read_recipe(three_tasks("corpora/mine", **LONG)), folder / "runs" / "a")
    quickstart = folder / "runs" / "quickstart" / "both-weighted-sums-concat" / "seed7"
    shutil.copytree(folder / "runs" / "a", quickstart)
    shutil.copytree(folder / "corpora" / "mine", folder / "corpora" / "synthetic")
    for number, clip in enumerate(clips[:2]):
        place = folder / "corpora" / "synthetic" / "audio" / "test" / f"test00-0{number}.flac"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place)
    return folder


@pytest.fixture(scope="session")
def imported_once():
    """What doctor finds when it imports libraries in processes of their own, the first time."""
    really = libraries.import_errors
    return cache(lambda statements: really(dict(statements)))


@pytest.fixture
def furnished(prepared, tmp_path, monkeypatch, imported_once):
    """A copy of it, as the current folder."""
    monkeypatch.setattr(libraries, "import_errors", lambda asked: imported_once((*asked.items(),)))
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
def test_every_snippet_runs(page, furnished):
    with closing(Page(furnished)) as at_work:
        for block in blocks(page):
            at_work.run(block)


def test_the_manifest_of_own_data_fits_the_recipes_below_it(workspace):
    """Its audio is silence here; the page's commands run on other clips."""
    every = blocks(ROOT / "docs" / "how-to" / "own_data.md")
    (table,) = (one.text for one in every if one.language == "tsv")
    Path("calls").mkdir()
    for name in ("one.wav", "two.flac"):
        soundfile.write(Path("calls") / name, np.zeros(6 * 16000), 16000)
    Path("manifest.tsv").write_text(table)
    corpus = prepare(Path("manifest.tsv"), Path("corpora/mine"))
    assert [u.duration for u in corpus.utterances] == [2.5, 3.1, 6.0]
    read = [yaml.safe_load(one.text) for one in every if one.language == "yaml"]
    for task in (task for one in read for task in one["tasks"].values()):
        if task["corpus"] == "corpora/mine" and "labels" in task:
            assert {u.emotion for u in corpus.utterances} <= {*task["labels"]}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
def test_what_a_service_does_not_answer_fails(workspace):
    block = Block("README.md", 1, "sh", None, None, "curl -s http://127.0.0.1:7860/healthz")
    with pytest.raises(AssertionError, match=r"README.md:1: .*curl -s .*healthz"):
        Page(workspace, address="http://127.0.0.1:9").run(block)


@pytest.mark.parametrize("page", [*RAN, *PARSED], ids=name_of)
def test_every_command_is_one(page):
    for block in blocks(page):
        if block.language in ("sh", ""):
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


WRONG = {  # by language: a snippet, and what is said of it
    "python": {"assert 1 == 2": "AssertionError", "speechfuse.load('runs/a')": "NameError"},
    "sh": {
        "speechfuse trane recipe.yaml": "no command trane",
        "speechfuse plan r.yaml --hours x": "--hours x",
        "speechfuse evaluate runs/none": "evaluate runs/none",
        "speechfuse sweep recipes/none.yaml": "no file recipes/none.yaml",
        "torchrun --nproc-per-node 8 speechfuse train r.yaml --outt x": "--outt",
        "make quickstrat": "quickstrat",
        "pip install 'speechfuse[demmo]'": "demmo",
        "rm -rf runs": "rm is not known here",
    },
    "yaml": {
        "upstreams: {mel: {kind: filterbanc}}\nfusion: {}\ntasks: {}": "filterbanc",
        "training: {steps: 5}": "a part of which recipe",
    },
}


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [(language, *pair) for language, said in WRONG.items() for pair in said.items()],
)
def test_a_snippet_that_is_wrong_fails(workspace, language, text, message):
    with pytest.raises(AssertionError, match=f"(?s)README.md:1: .*{re.escape(message)}"):
        Page(workspace).run(Block("README.md", 1, language, None, None, text))
