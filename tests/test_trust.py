"""A folder of somebody else is data: no code of it runs, and nothing is written elsewhere."""

import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import speechfuse
from speechfuse.audio import read_audio
from speechfuse.build import read_recipe
from speechfuse.catalog import find, of_others, trusted_code
from speechfuse.checkpoint import Run, write_text
from speechfuse.cli import app
from speechfuse.data.corpus import read_corpus
from speechfuse.data.manifests import prepare
from speechfuse.errors import DataError, RecipeError, RunError, SpeechFuseError
from speechfuse.evaluate import evaluate_again
from speechfuse.pseudo.labelling import find_teacher
from speechfuse.publish import save_pretrained
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe
EXAMPLE = Path(__file__).parents[1] / "examples" / "mean_of_layers.py"
KIND = "mean_of_layers:MeanOfLayers"
TRAP = "open('ran', 'w').close()\n"


def invoked(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def foreign(answering, workspace, monkeypatch):
    """A copy of a run that names a file, which lies beside its weights and in the current one."""
    monkeypatch.syspath_prepend(workspace)
    sys.modules.pop("trap", None)
    shutil.copytree(answering, workspace / "run")
    recipe = yaml.safe_load((workspace / "run" / "recipe.yaml").read_text())
    recipe["fusion"]["interface"] = {"kind": "trap:Part"}
    (workspace / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for folder in (workspace, workspace / "run"):
        (folder / "trap.py").write_text(TRAP)
    return workspace / "run"


@pytest.mark.parametrize(
    "use",
    [
        lambda run: speechfuse.load(run),
        lambda run: speechfuse.load(str(run), trust_code=False),
        evaluate_again,
        lambda run: save_pretrained(run, Path("out")),
        lambda run: find_teacher(str(run)),
        lambda run: Run(run).recipe(),
        lambda run: train_run(read_recipe(EXAMPLE_RECIPE), run),
    ],
)
def test_no_code_that_a_run_folder_names_is_imported(foreign, use):
    with pytest.raises(RecipeError, match=r"interface kind 'trap:Part' is code .*--trust-code"):
        use(foreign)
    assert not Path("ran").exists()


EXAMPLE_RECIPE = {
    "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
    "fusion": {"interface": {"kind": "weighted_sum"}},
    "tasks": {"emotion": {"corpus": "nowhere", "head": {"kind": "classifier"}}},
}


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "run", "clip.wav"),
        ("evaluate", "run"),
        ("serve", "run"),
        ("weights", "run"),
        ("alpha", "run"),
        ("publish", "run", "out"),
        ("compare", "run", "other"),
        ("export", "run"),
        ("pseudo-label", "corpus", "--teacher", "run", "--out", "out"),
    ],
)
def test_every_command_asks_for_the_flag(foreign, words, tiny_corpus):
    shutil.copy(tiny_corpus.parent / "s7-0.wav", "clip.wav")
    shutil.copytree(foreign, "other")
    refused = invoked(*words)
    assert isinstance(refused.exception, RecipeError), refused.exception
    assert "--trust-code" in str(refused.exception)
    assert not Path("ran").exists()
    assert "trap" in str(invoked(*words, "--trust-code").exception)
    assert Path("ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"upstreams": {"mel": {"kind": "trap:Part"}}},
        {"fusion": {"interface": {"kind": "weighted_sum"}, "merge": {"kind": "trap:Part"}}},
        {"context": {"kind": "trap:Part", "interface": {"kind": "prompt_adaptive"}}},
        {"context": {"preset": "tiny", "interface": {"kind": "trap:Part"}}},
        {"tasks": {"emotion": {"corpus": "x", "head": {"kind": "trap:Part"}}}},
        {"tasks": {"own": {"kind": "trap:Part", "corpus": "x", "head": {"kind": "classifier"}}}},
    ],
)
def test_every_place_of_a_part_is_watched(foreign, change):
    (foreign / "recipe.yaml").write_text(yaml.safe_dump(EXAMPLE_RECIPE | change))
    with pytest.raises(RecipeError, match=r"kind 'trap:Part' is code .*--trust-code"):
        Run(foreign).recipe()
    assert not Path("ran").exists()


def test_code_of_ones_own_trains_and_answers_when_it_is_trusted(
    workspace, tone_recipe, tiny_corpus, monkeypatch
):
    shutil.copy(EXAMPLE, workspace)
    monkeypatch.syspath_prepend(workspace)
    clip = tiny_corpus.parent / "s7-0.wav"
    recipe = read_recipe(tone_recipe, [f"fusion.interface={{kind: '{KIND}'}}"])
    metrics = train_run(recipe, workspace / "run")
    assert train_run(recipe, workspace / "run") == metrics  # goes on: the recipe is the user's
    with pytest.raises(RecipeError, match="trust_code=True"):
        speechfuse.load("run")
    answer = speechfuse.load("run", trust_code=True)(clip)
    assert answer["asr"].text is not None
    assert invoked("evaluate", "run", "--trust-code").exit_code == 0
    with pytest.raises(RecipeError, match="trust_code=True"):  # the flag is for one command
        speechfuse.load("run")
    published = invoked("publish", "run", "out", "--trust-code")
    assert f"others need your code for {KIND}" in published.output
    card = (workspace / "out" / "README.md").read_text()
    assert 'load("out", trust_code=True)' in card
    assert "mean_of_layers.py: class MeanOfLayers" in card
    assert not list((workspace / "out").glob("*.py"))
    assert speechfuse.load("out", trust_code=True)(clip).to_dict() == answer.to_dict()


def test_trust_ends_where_it_began():
    with of_others():
        with pytest.raises(RecipeError, match="is code"):
            find("interface", "nobody:Part")
        with trusted_code(), pytest.raises(RecipeError, match="cannot be imported"):
            find("interface", "nobody:Part")
        with trusted_code(False), pytest.raises(RecipeError, match="is code"):
            find("interface", "nobody:Part")
    with of_others({KIND}), pytest.raises(RecipeError, match="'other:Part' is code"):
        find("interface", "other:Part")


def test_a_run_folder_reads_no_environment_variables(answering, workspace, monkeypatch):
    """What is in them would be asked of the hub as a name."""
    monkeypatch.setenv("SECRET", "hunter2")
    shutil.copytree(answering, "run")
    path = Path("run/recipe.yaml")
    recipe = yaml.safe_load(path.read_text())
    source = {"kind": "huggingface", "source": "evil/${SECRET}", "revision": "main"}
    recipe["upstreams"] = {"mel": source}
    path.write_text(yaml.safe_dump(recipe))
    assert Run(Path("run")).recipe().upstreams["mel"].options["source"] == "evil/${SECRET}"
    with pytest.raises(SpeechFuseError) as refused:
        speechfuse.load("run")
    assert "hunter2" not in str(refused.value)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_checkpoint_is_not_unpickled(answering, workspace, name):
    shutil.copytree(answering, "run")
    Path("run/metrics.json").unlink()
    torch.save({"state_dict": Bomb()}, f"run/checkpoints/{name}")
    with pytest.raises(SpeechFuseError, match="damaged"):
        train_run(Run(Path("run")).recipe(), Path("run"))
    assert not Path("ran").exists()


def test_a_checkpoint_with_other_weights_is_damaged(answering, workspace):
    """Found by harmed files: its names are not checked by the archive that they lie in."""
    shutil.copytree(answering, "run")
    Path("run/metrics.json").unlink()
    (path,) = Path("run/checkpoints").glob("best*.ckpt")
    kept = torch.load(path, weights_only=True)
    name, *_ = [name for name in kept["state_dict"] if "project" in name]
    kept["state_dict"][name.replace("project", "rroject")] = kept["state_dict"].pop(name)
    torch.save(kept, path)
    with pytest.raises(RunError, match=r"checkpoints is damaged .*train again"):
        train_run(Run(Path("run")).recipe(), Path("run"))


def test_weights_are_not_unpickled(answering, workspace):
    shutil.copytree(answering, "run")
    for data in (pickle.dumps(Bomb()), b""):
        Path("run/model.safetensors").write_bytes(data)
        with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
            speechfuse.load("run")
    assert not Path("ran").exists()


def test_yaml_makes_no_objects(workspace):
    Path("recipe.yaml").write_text("a: !!python/object/apply:os.mkdir [ran]\n")
    with pytest.raises(RecipeError):
        read_recipe(Path("recipe.yaml"))
    with pytest.raises(RecipeError):
        read_recipe(EXAMPLE_RECIPE, ["seed=!!python/object/apply:os.mkdir [ran]"])
    assert not Path("ran").exists()


def test_a_corpus_runs_no_command(workspace, tiny_corpus):
    """Lhotse knows audio that a command writes."""
    prepare(tiny_corpus, Path("corpus"))
    cuts = Path("corpus/cuts.jsonl")
    text = cuts.read_text().replace('"type": "file"', '"type": "command"')
    cuts.write_text(text.replace(str(tiny_corpus.parent), "touch ran;"))
    (clip, *_) = read_corpus(Path("corpus")).utterances
    with pytest.raises(DataError, match="no audio file"):
        read_audio(clip.audio)
    assert not Path("ran").exists()


def test_nothing_is_written_through_links_of_a_folder(answering, workspace):
    shutil.copytree(answering, "run")
    victim = Path("victim")
    victim.write_text("mine")
    for name in ("metrics.json", ".metrics.json.part", "predictions/.test_emotion.tsv.part"):
        Path("run", name).unlink(missing_ok=True)
        Path("run", name).symlink_to(victim.resolve())
    write_text(Path("run/metrics.json"), "{}")
    Run(Path("run")).save_table("test", "emotion", [{"id": "a"}])
    assert victim.read_text() == "mine"
    assert not Path("run/metrics.json").is_symlink()
    shutil.rmtree("run/predictions")
    Path("elsewhere").mkdir()
    Path("run/predictions").symlink_to(Path("elsewhere").resolve())
    with pytest.raises(RunError, match="predictions in run is a link"):
        Run(Path("run")).save_table("test", "emotion", [{"id": "a"}])
    assert not list(Path("elsewhere").iterdir())


def test_a_recipe_names_no_tasks_that_lead_elsewhere():
    head = {"kind": "classifier"}
    for name in ("../evil", "/etc/evil", "a/b", ".hidden", "a:B"):
        with pytest.raises(RecipeError, match="the name of a task is"):
            read_recipe(EXAMPLE_RECIPE | {"tasks": {name: {"corpus": "x", "head": head}}})
