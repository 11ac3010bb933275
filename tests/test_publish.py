import json
import re
import shutil

import pytest
import yaml
from safetensors import safe_open
from typer.testing import CliRunner

import speechfuse
from speechfuse import cli
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import RunError
from speechfuse.pipeline import speech_model
from speechfuse.publish import push_to_hub, save_pretrained
from speechfuse.recipe import merged
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe  # seconds in all: run by make test


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_corpus, encoder):
    """A run on a shipped encoder of ours, and one on an encoder in a folder."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = str(tiny_corpus)
    heads = {"asr": {"kind": "ctc", "project": 8, "lstm_dim": 8}, "emotion": {"kind": "classifier"}}
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {name: {"corpus": corpus, "head": head} for name, head in heads.items()},
        "training": {"steps": 4, "batch_seconds": 4},
    }
    local = {"tiny": {"kind": "huggingface", "source": str(encoder("hubert"))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_run(read_recipe(recipe), folder / "mel")
        train_run(read_recipe({**recipe, "upstreams": local}), folder / "local")
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    yield trained
    for name in ("out", "other"):
        shutil.rmtree(trained / name, ignore_errors=True)


def test_a_published_run_answers_as_the_run_does(here, tiny_corpus, tmp_path, monkeypatch):
    clip = tiny_corpus.parent / "s7-0.wav"
    expected = speechfuse.load("mel")(clip).to_dict()
    folder = speechfuse.load("mel").save_pretrained("out", license="apache-2.0")
    shutil.move(folder, tmp_path / "away")
    monkeypatch.chdir(tmp_path)
    assert speechfuse.load("away")(clip).to_dict() == expected
    assert speech_model.SpeechModel.from_pretrained("away").folder.name == "away"


def test_the_folder_holds_what_it_should_and_no_path_of_this_machine(here, trained, tiny_corpus):
    folder = save_pretrained(here / "mel", here / "out")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "layers.png",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "seen.json",
        "tasks.json",
        "upstreams.json",
    }
    for path in folder.iterdir():
        if path.suffix in (".md", ".json", ".yaml"):
            text = path.read_text()
            assert str(trained) not in text
            assert str(tiny_corpus.parent) not in text
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "speechfuse"
    assert config["labels"] == {"emotion": ["calm", "loud"]}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not any("upstream" in name for name in file.keys())  # noqa: SIM118


def test_the_card_says_how_well_on_whom_and_what_it_is_not_for(here):
    save_pretrained(here / "mel", here / "out", license="apache-2.0")
    card = (here / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["license"] == "apache-2.0"
    assert meta["tags"] == ["speech", "layer-fusion", "asr", "emotion"]
    metrics = json.loads((here / "mel" / "metrics.json").read_text())
    m = metrics["test"]["emotion"]["accuracy"]
    row = f"| {100 * m['value']:.1f} | [{100 * m['low']:.1f}, {100 * m['high']:.1f}] | 2 |"
    assert f"| emotion | test | accuracy (WA) {row}" in body
    for part in ("![", "## Limits", "## How to cite", "Trained and developed on tones0"):
        assert part in body, part
    assert "asr, emotion: none of the 2 speakers of test is in training and development." in body
    assert 'speechfuse.load("out")' in body
    assert "```sh\npip install speechfuse\n```" in body
    assert "of whom a number above has as few as 2. One run" in body
    assert "no licence" not in body
    assert "| emotion | tones0 | train | 32 | 0.0036 | 4 | calm 16, loud 16 |" in body
    assert "| asr | tones0 | test | 16 | 0.0018 | 2 |  |" in body


def test_the_card_says_when_test_speakers_were_trained_on(tiny_corpus, tmp_path, caplog):
    """A corpus whose own split column has voices of test in train: s6 of two."""
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(tiny_corpus.parent / row["audio"])
        if row["id"] in ("s6-0", "s6-1"):
            row["split"] = "train"
    manifest = tmp_path / "shared.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"corpus": str(manifest), "head": {"kind": "classifier"}}
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {"emotion": task, "mood": {"kind": "emotion", **task}},
        "training": {"steps": 2, "batch_seconds": 4},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train_run(read_recipe(recipe), tmp_path / "run")
        folder = save_pretrained(tmp_path / "run", tmp_path / "pub", name="org/pub", picture=False)
    said = "1 of the 2 speakers of test are in training and development, too, with 43 % of its"
    (line,) = [one for one in caplog.messages if "of test" in one]
    assert f"emotion and mood: {said} utterances" in line
    assert "name split.test_speakers" in line
    card = (folder / "README.md").read_text()
    assert f"emotion, mood: {said} utterances." in card
    assert 'speechfuse.load("org/pub")' in card


def test_of_one_speaker_nothing_claims_an_interval(tiny_corpus, tmp_path, caplog):
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(tiny_corpus.parent / row["audio"])
    manifest = tmp_path / "one.jsonl"
    kept = [row for row in rows if row["speaker"] != "s4"]  # s5 is left to develop on
    manifest.write_text("".join(json.dumps(row) + "\n" for row in kept))
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {"emotion": {"corpus": str(manifest), "head": {"kind": "classifier"}}},
        "training": {"steps": 2, "batch_seconds": 4},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train_run(read_recipe(recipe), tmp_path / "run")
        (line,) = [one for one in caplog.messages if "development has" in one]
        assert "emotion: development has 1 speaker" in line
        shown = CliRunner().invoke(cli.app, ["evaluate", "run"], catch_exceptions=False)
        assert re.search(r"dev .* accuracy \(WA\) .* \[-\] .* 1 ", shown.stdout)
        dev = json.loads((tmp_path / "run" / "metrics.json").read_text())["dev"]["emotion"]
        assert (dev["accuracy"]["low"], dev["accuracy"]["high"]) == (None, None)
        dev["accuracy"] |= {"low": 0.5, "high": 0.5}  # as runs from before kept it
        old = Run(tmp_path / "run")
        old.save_metrics(old.metrics() | {"dev": {"emotion": dev}})
        caplog.clear()
        named = {"dev_speakers": ["s5"], "test_speakers": ["s6", "s7"]}
        asked = merged(recipe, {"tasks": {"emotion": {"split": named}}})
        train_run(read_recipe(asked), tmp_path / "asked")
        folder = save_pretrained(tmp_path / "run", tmp_path / "pub", picture=False)
    assert not any("development has" in one for one in caplog.messages)
    card = (folder / "README.md").read_text()
    assert "| [-] | 1 |" in card
    assert "as few as 1; of one there is no interval. One run" in card
    assert "It names no licence" in card


def test_a_run_that_did_not_keep_it_is_said_to_tell_nothing(here, tmp_path):
    shutil.copytree(here / "mel", tmp_path / "old")
    seen = json.loads((tmp_path / "old" / "seen.json").read_text())
    (tmp_path / "old" / "seen.json").write_text(json.dumps({"seen": seen["seen"]}))
    folder = save_pretrained(tmp_path / "old", here / "out", picture=False)
    card = (folder / "README.md").read_text()
    assert "Whether the test speakers are others than those of training is not recorded." in card
    seen["data"]["emotion"]["splits"] = 3
    (tmp_path / "old" / "seen.json").write_text(json.dumps(seen))
    with pytest.raises(RunError, match=r"seen\.json is damaged"):
        save_pretrained(tmp_path / "old", here / "other", picture=False)


def test_an_encoder_in_a_folder_has_to_be_where_others_find_it(here, encoder, monkeypatch):
    with pytest.raises(
        RunError, match=r"nobody else finds it; say where .* --source tiny=ORG/NAME"
    ):
        save_pretrained(here / "local", here / "out")
    assert not (here / "out").exists()
    with pytest.raises(RunError, match="no upstream 'x'; it has: tiny"):
        save_pretrained(here / "local", here / "out", sources={"x": "a/b"})
    from speechfuse.upstreams import huggingface

    found = {"org/tiny": encoder("hubert"), "org/other": encoder("wavlm")}

    def fetched(source, revision, *rest, **options):
        return found[source] if source in found else original(source, revision, *rest, **options)

    original = huggingface.model_folder
    monkeypatch.setattr(huggingface, "model_folder", fetched)
    with pytest.raises(RunError, match="is another encoder"):
        save_pretrained(here / "local", here / "out", sources={"tiny": "org/other@abc"})
    assert not (here / "out").exists()
    save_pretrained(here / "local", here / "out", sources={"tiny": "org/tiny@abc"})
    recipe = yaml.safe_load((here / "out" / "recipe.yaml").read_text())
    assert recipe["upstreams"]["tiny"]["source"] == "org/tiny"
    assert recipe["upstreams"]["tiny"]["revision"] == "abc"
    assert "base_model:\n- org/tiny\n" in (here / "out" / "README.md").read_text()


def test_nothing_is_overwritten_or_published_unfinished(here, tmp_path):
    (here / "out").mkdir()
    with pytest.raises(RunError, match="is there already"):
        save_pretrained(here / "mel", here / "out")
    shutil.copytree(here / "mel", tmp_path / "cut")
    (tmp_path / "cut" / "metrics.json").unlink()
    with pytest.raises(RunError, match="not trained to its end"):
        save_pretrained(tmp_path / "cut", here / "other")
    with pytest.raises(RunError, match="is no published folder"):
        push_to_hub(here / "mel", "org/name")


def test_it_goes_to_the_hub_and_comes_back_without_code(here, monkeypatch, tmp_path):
    import huggingface_hub

    sent = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, name, **options):
            sent["name"] = name

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")

    def download(name, *, revision, allow_patterns):
        sent["patterns"] = allow_patterns
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    address = speechfuse.load("mel").push_to_hub("org/name", picture=False)
    assert address == "https://huggingface.co/org/name"
    assert 'speechfuse.load("org/name")' in (tmp_path / "hub" / "README.md").read_text()
    assert speechfuse.load("org/name").checked(None) == ["asr", "emotion"]
    assert not [one for one in sent["patterns"] if one.endswith((".py", ".bin", ".pt"))]


def test_a_name_that_is_nowhere_is_told(here):
    with pytest.raises(RunError, match="cannot be fetched from the hub"):
        speechfuse.load("org/nothing")
