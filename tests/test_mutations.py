"""Whatever is in a file, it is read, or refused by one clear message, and nothing is written."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from mutating import harmed
from speechfuse import build
from speechfuse.audio import pad_clips, read_audio
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.data.corpus import read_corpus
from speechfuse.data.manifests import prepare
from speechfuse.errors import RunError, SpeechFuseError
from speechfuse.evaluate import evidence_of
from speechfuse.extract import fill_stores
from speechfuse.predict import predict_files
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from speechfuse.upstreams.huggingface import HuggingFace

pytestmark = [pytest.mark.recipe, pytest.mark.stress, pytest.mark.timeout(3600)]


def contents(folder):
    """Every file below a folder by its place, hashed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_or_refused(path, count, read, folder=None, share=0.2):
    """Harms a file again and again. folder: in which nothing may change. share: refused at least.

    Every error is a SpeechFuseError; anything else is shown with its number.
    """
    whole, refused = path.read_bytes(), 0
    try:
        for seed in range(count):
            path.write_bytes(harmed(path, whole, seed))
            before = contents(folder) if folder else None
            try:
                read()
            except SpeechFuseError:
                refused += 1
            except Exception as error:
                error.add_note(f"mutation {seed} of {path.name}")
                raise
            assert before is None or contents(folder) == before, f"mutation {seed} wrote"
    finally:
        path.write_bytes(whole)
    assert refused >= share * count
    read()


def test_recipes(workspace, tone_recipe, mutations):
    path = workspace / "recipe.yaml"
    path.write_text(yaml.safe_dump(tone_recipe))
    read_or_refused(path, mutations, lambda: build.stack_specs(read_recipe(path)), workspace)


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.tsv", "manifest.csv"])
def test_manifests(workspace, tiny_corpus, mutations, name):
    source = workspace / "data"
    source.mkdir()
    rows = [*map(yaml.safe_load, tiny_corpus.read_text().splitlines()[:6])]
    for row in rows:
        shutil.copy(tiny_corpus.parent / row["audio"], source)
    mark = {"manifest.tsv": "\t", "manifest.csv": ","}.get(name)
    if mark:
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        (source / name).write_text("\n".join(lines))
    else:
        (source / name).write_text("\n".join(tiny_corpus.read_text().splitlines()[:6]))

    def read():
        try:
            prepare(source / name, workspace / "out")
        except SpeechFuseError:
            assert not (workspace / "out").exists()
            raise
        shutil.rmtree(workspace / "out")

    read_or_refused(source / name, mutations, read, workspace, share=0.1)


@pytest.mark.parametrize(
    "name", ["corpus.json", "cuts.jsonl", "recordings.jsonl", "supervisions.jsonl", "trials.tsv"]
)
def test_prepared_corpora(workspace, tiny_corpus, mutations, name):
    trials = workspace / "pairs.tsv"
    trials.write_text("1 s6-0 s6-1\n0 s6-0 s7-0\n")
    folder = workspace / "corpus"
    prepare(tiny_corpus, folder, trials=trials)
    unread = name in ("recordings.jsonl", "supervisions.jsonl")  # for Lhotse's own tools
    read_or_refused(
        folder / name, mutations, lambda: read_corpus(folder), folder, 0 if unread else 0.1
    )


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_audio(workspace, mutations, ending):
    path = workspace / f"clip.{ending}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(4000), 16000)

    def read():
        samples = read_audio(path)
        assert samples.dtype == np.float32
        assert len(samples)
        assert np.isfinite(samples).all()

    read_or_refused(path, mutations, read, workspace, share=0.1)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_encoders(workspace, encoder, mutations, name):
    folder = workspace / "encoder"
    shutil.copytree(encoder("hubert"), folder)
    clip = pad_clips([torch.zeros(3000)])
    read_or_refused(
        folder / name, mutations, lambda: HuggingFace(source=str(folder))(clip), folder, share=0.1
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_corpus):
    """A run with a class and a text, and its store beside it."""
    root = tmp_path_factory.mktemp("trained")
    head = {"kind": "ctc", "project": 8, "lstm_layers": 0}
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {
            "asr": {"corpus": str(tiny_corpus), "head": head},
            "emotion": {"corpus": str(tiny_corpus), "head": {"kind": "classifier"}},
        },
        "training": {"steps": 2, "evaluate_every": 1, "batch_seconds": 4},
        "store": {"folder": str(root / "stores")},
    }
    train_run(read_recipe(recipe), root / "run")
    return root / "run"


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "upstreams.json",
        "tasks.json",
        "metrics.json",
        "data.json",
        "seen.json",
        "log.csv",
        "model.safetensors",
        "predictions/test_asr.tsv",
        "predictions/test_emotion.tsv",
    ],
)
def test_run_folders(workspace, trained, tiny_corpus, mutations, name):
    folder = workspace / "run"
    shutil.copytree(trained, folder)
    clip = tiny_corpus.parent / "s7-0.wav"

    def read():
        run = Run(folder)
        if name in ("recipe.yaml", "upstreams.json", "tasks.json", "model.safetensors"):
            list(predict_files(folder, [clip]))
        elif name == "metrics.json":
            run.metrics()
        elif name == "data.json":
            marks = {n: data.marks() for n, data in load_tasks(run.recipe(), run.tasks()).items()}
            run.check_data(marks)
        elif name == "seen.json":
            run.seen()
        elif name == "log.csv":
            run.log()
        else:
            evidence_of(run, "test")

    read_or_refused(folder / name, mutations, read, folder, share=0.05)


@pytest.mark.parametrize("kind", ["*.safetensors", "plan-*.json", "about.json"])
def test_stores_are_mended_or_refused(workspace, trained, mutations, kind):
    """A damaged shard is made again as it was; a damaged plan is named."""
    shutil.copytree(trained.parent / "stores", workspace / "stores")
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    recipe["store"]["folder"] = str(workspace / "stores")
    read = read_recipe(recipe)
    tasks = load_tasks(read)
    (path, *_) = sorted((workspace / "stores").glob(f"*/{kind}"))
    whole = path.read_bytes()
    utterances = tasks["emotion"].splits["train"]

    def layers():
        return fill_stores(read, tasks)["emotion"][0].batch(utterances).layers

    expected = layers()
    for seed in range(max(10, mutations // 4)):
        path.write_bytes(harmed(path, whole, seed))
        try:
            found = layers()
        except RunError as error:
            named = re.search("plan-.* is damaged", str(error))
        else:
            named = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert named, f"mutation {seed}"
        for other in path.parent.glob("*"):
            if other.name not in {p.name for p in (trained.parent / "stores").glob("*/*")}:
                other.unlink()
        shutil.copytree(trained.parent / "stores", workspace / "stores", dirs_exist_ok=True)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_checkpoints_of_a_stopped_run(workspace, trained, mutations, name):
    folder = workspace / "run"
    shutil.copytree(trained, folder)
    recipe = read_recipe(folder / "recipe.yaml")
    path = folder / "checkpoints" / name
    kept = {p: p.read_bytes() for p in (folder / "checkpoints").iterdir()}

    def go_on():
        for other, data in kept.items():
            if other != path:
                other.write_bytes(data)
        (folder / "metrics.json").unlink(missing_ok=True)
        train_run(recipe, folder)
        path.write_bytes(kept[path])

    count = max(5, mutations // 20)
    read_or_refused(path, count, go_on, share=0)


def test_damage_is_drawn_from_its_seed():
    whole = Path(__file__).read_bytes()
    one, other = (harmed(Path("x.bin"), whole, seed) for seed in (1, 1))
    assert one == other != whole
