"""Whatever is in a file, it is read, or refused by one clear message, and nothing is written.

Each is read in a process of its own kind, so that a crash, a hang or a swelling is seen, too.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import doors
from fuzzing import outcomes
from mutating import FORMS, damaged, harmed, harmed_sound
from speechfuse.build import read_recipe
from speechfuse.data.manifests import prepare
from speechfuse.train import train_run

pytestmark = [pytest.mark.recipe, pytest.mark.stress, pytest.mark.timeout(7200)]
# For each harmed file; a run is built, trained on or predicted with.
SECONDS, MEGABYTES = 60.0, 300.0
SOUND_SECONDS, SOUND_MEGABYTES = 10.0, 100.0  # for a recording of less than a second


def read_or_refused(path, count, read, folder=None, share=0.2):
    """Harms a file again and again. folder: nothing may change in it. share: refused at least."""
    whole = path.read_bytes()
    harm = partial(doors.write_harmed, path, whole)
    found = outcomes(harm, read, count, seconds=SECONDS, megabytes=MEGABYTES, unchanged=folder)
    path.write_bytes(whole)
    judge(found, count, share, path.name)
    read()


def judge(found, count, share, name):
    problems = [f"{one.number}: {one.problem}" for one in found if one.problem]
    assert not problems, "\n".join([f"mutations of {name}", *problems])
    assert len(found) == count
    refused = sum(one.refused for one in found)
    assert refused >= share * count
    longest = max(one.seconds for one in found)
    most = max(one.megabytes for one in found)
    print(f"{name}: {count} harmed, {refused} refused, {longest:.2f} s and {most:.0f} MB at most")


def test_recipes(workspace, tone_recipe, mutations):
    path = workspace / "recipe.yaml"
    path.write_text(yaml.safe_dump(tone_recipe))
    read_or_refused(path, mutations, partial(doors.plan, path), workspace)


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
    read = partial(doors.import_corpus, source / name, workspace / "out")
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
    read = partial(doors.open_corpus, folder)
    read_or_refused(folder / name, mutations, read, folder, 0 if unread else 0.1)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Half a second of noise in every form."""
    folder, wholes = tmp_path_factory.mktemp("sounds"), {}
    for name, (form, subtype, rate, channels) in FORMS.items():
        noise = 0.1 * np.random.default_rng(0).standard_normal((rate // 2, channels))
        soundfile.write(folder / name, noise, rate, subtype, format=form)
        wholes[name] = (folder / name).read_bytes()
        doors.hear(folder / name)
    return wholes


@pytest.mark.parametrize("name", FORMS)
def test_audio(workspace, sounds, harmed_sounds, name):
    path, count = workspace / name, -(-harmed_sounds // len(FORMS))
    harm = partial(doors.write_harmed_sound, path, sounds[name], [*sounds.values()])
    found = outcomes(
        harm,
        partial(doors.hear, path),
        count,
        seconds=SOUND_SECONDS,
        megabytes=SOUND_MEGABYTES,
    )
    judge(found, count, 0.05, name)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_encoders(workspace, encoder, mutations, name):
    folder = workspace / "encoder"
    shutil.copytree(encoder("hubert"), folder)
    count = max(40, mutations // 4)
    read_or_refused(folder / name, count, partial(doors.encode, folder), folder, share=0.1)


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
    read = partial(doors.use_run, folder, name, tiny_corpus.parent / "s7-0.wav")
    read_or_refused(folder / name, max(40, mutations // 4), read, folder, share=0.05)


@pytest.mark.parametrize("kind", ["*.safetensors", "plan-*.json", "about.json"])
def test_stores_are_mended_or_refused(workspace, trained, mutations, kind):
    """A damaged shard is made again as it was; a damaged plan is named."""
    stores, whole = workspace / "stores", trained.parent / "stores"
    shutil.copytree(whole, stores)
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    recipe["store"]["folder"] = str(stores)
    expected = [*doors.stored_layers(recipe)]
    (path, *_) = sorted(stores.glob(f"*/{kind}"))
    read = partial(doors.mend_store, recipe, whole, expected)
    read_or_refused(path, max(10, mutations // 4), read, share=0)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_checkpoints_of_a_stopped_run(workspace, trained, mutations, name):
    folder = workspace / "run"
    shutil.copytree(trained, folder)
    path, count = folder / "checkpoints" / name, max(5, mutations // 20)
    read = partial(doors.go_on_training, folder, trained)
    read_or_refused(path, count, read, share=0)


def test_damage_is_drawn_from_its_seed():
    whole = Path(__file__).read_bytes()
    one, other = (harmed(Path("x.bin"), whole, seed) for seed in (1, 1))
    assert one == other != whole
    assert harmed_sound(whole, [whole], 1) == harmed_sound(whole, [whole], 1)
    assert damaged(b"", 3) == damaged(b"", 3)
