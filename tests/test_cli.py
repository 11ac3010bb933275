"""What a user meets: help at once, one clear message for an error, exit code 2."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import speechfuse
from speechfuse import cli
from speechfuse.errors import SpeechFuseError


@pytest.fixture
def run(workspace):
    """Run the command line in this process: (exit code, output, errors)."""

    def call(*arguments):
        errors = []
        runner = CliRunner()
        result = runner.invoke(cli.app, [str(a) for a in arguments], catch_exceptions=True)
        if isinstance(result.exception, SpeechFuseError):
            errors.append(str(result.exception))
            return 2, result.stdout, "\n".join(errors)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def written(recipe, path):
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("module", ["cli", "doctor.report"])
def test_what_answers_at_once_imports_nothing_heavy(module):
    code = (
        f"import sys, speechfuse.{module};"
        "heavy = {'torch', 'numpy', 'transformers', 'lightning', 'lhotse'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


COMMANDS_OF_RUNS = {
    "evaluate": "nowhere",
    "compare": "nowhere nowhere",
    "prune": "nowhere",
    "predict": "nowhere a.wav",
    "publish": "nowhere out",
    "export": "nowhere",
    "weights": "nowhere",
    "alpha": "nowhere",
    "serve": "nowhere",
    "bench": "serve --run nowhere",
}


def test_a_run_that_is_not_there_is_said_before_torch_is_loaded(workspace):
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from speechfuse import cli\n"
        "from speechfuse.errors import SpeechFuseError\n"
        f"for name, rest in {COMMANDS_OF_RUNS}.items():\n"
        "    error = CliRunner().invoke(cli.app, [name, *rest.split()]).exception\n"
        "    assert 'nowhere is no run folder' in str(error), (name, error)\n"
        "    assert isinstance(error, SpeechFuseError)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_that_takes_a_run_checks_it():
    """None is left out of the list above."""
    taking = set()
    for command in cli.app.registered_commands:
        if {"run", "runs"} & {*inspect.signature(command.callback).parameters}:
            taking.add(command.callback.__name__)
    assert taking == {*COMMANDS_OF_RUNS}


def test_every_command_has_help(run):
    commands = [c.callback.__name__.replace("_", "-") for c in cli.app.registered_commands]
    assert {"plan", "prepare", "train", "evaluate", "predict", "weights", "parts"} <= set(commands)
    for name in commands:
        status, out, _ = run(name, "--help")
        assert status == 0
        assert "Usage" in out


@pytest.mark.recipe
def test_the_installed_command_exits_with_2_and_one_message(workspace, tone_recipe):
    path = written(tone_recipe, workspace / "r.yaml")
    command = Path(sys.executable).parent / "speechfuse"
    done = subprocess.run(
        [command, "plan", path, "fusion.interface.kind=hcnov"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Did you mean 'hconv'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train r.yaml --out r.yaml", "r.yaml is a file, expected a folder for runs"),
        ("train r.yaml --out r.yaml/x", "r.yaml is a file, expected a folder for runs"),
        ("train r.yaml --out x store.folder=r.yaml", "Not a directory: 'r.yaml"),
        ("prepare CORPUS --trials nowhere.tsv --out x", "no file at nowhere.tsv"),
        ("weights . --picture nowhere/layers.svg", "in a folder that is there"),
        ("weights . --picture layers.doc", "name an .svg or a .png"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line_of_error(
    workspace, tone_recipe, tiny_corpus, arguments, message, monkeypatch, capsys
):
    written(tone_recipe, workspace / "r.yaml")
    written(tone_recipe, workspace / "recipe.yaml")
    given = arguments.replace("CORPUS", str(tiny_corpus)).split()
    monkeypatch.setattr(sys, "argv", ["speechfuse", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (workspace / "x").exists()


def test_plan_prints_shapes_without_weights(run, workspace, encoder):
    recipe = {
        "upstreams": {
            "a": {"kind": "huggingface", "source": str(encoder("wavlm"))},
            "b": {"kind": "huggingface", "source": str(encoder("whisper"))},
        },
        "fusion": {"interface": {"kind": "hconv"}},
        "tasks": {"asr": {"corpus": "nothing-yet", "head": {"kind": "ctc"}}},
    }
    status, out, _ = run("plan", written(recipe, workspace / "r.yaml"))
    assert status == 0
    assert "4 x 32 -> 32 at 50 Hz" in out
    assert "corpus not prepared" in out
    assert "GB" in out


def test_plan_refuses_upstreams_that_cannot_be_fused(run, workspace, encoder):
    recipe = {
        "upstreams": {
            "a": {"kind": "huggingface", "source": str(encoder("wavlm"))},
            "b": {"kind": "filterbank"},
        },
        "fusion": {"interface": {"kind": "hconv"}},
        "tasks": {"asr": {"corpus": "x", "head": {"kind": "ctc"}}},
    }
    status, _, errors = run("plan", written(recipe, workspace / "r.yaml"))
    assert status == 2
    assert "[32, 80]; use merge kind 'concat'" in errors


def test_the_whole_way_from_a_manifest(run, workspace, tone_recipe, tiny_corpus):
    status, out, _ = run("prepare", tiny_corpus, "--out", "corpora/tones")
    assert status == 0
    assert "speakers: 8" in out
    for task in tone_recipe["tasks"].values():
        task["corpus"] = "tones"
    path = written(tone_recipe, workspace / "r.yaml")
    assert run("plan", path)[0] == 0
    status, trained, _ = run("train", path, "--out", "runs/a")
    assert status == 0
    status, evaluated, _ = run("evaluate", "runs/a")
    assert status == 0
    assert [r for r in trained.splitlines() if "test" in r] == [
        r for r in evaluated.splitlines() if "test" in r
    ]
    assert "accuracy (WA)" in evaluated
    assert "balanced accuracy (UA)" in evaluated
    assert "WER and CER compare texts as lower case, letters of any script" in evaluated
    test = json.loads((workspace / "runs/a/metrics.json").read_text())["test"]
    for metric, m in {"WER": test["asr"]["wer"], "EER": test["verification"]["eer"]}.items():
        value, low, high = (f"{100 * m[key]:.1f}" for key in ("value", "low", "high"))
        row = rf"test .* {metric} .* {value} .*\[{low}, {high}\] .* 2 "
        assert re.search(row, evaluated), row
    status, out, _ = run("predict", "runs/a", tiny_corpus.parent / "s7-0.wav", "--task", "emotion")
    assert status == 0
    assert out.split("\t")[1] == "emotion"
    status, out, _ = run("weights", "runs/a", "--picture", "layers.svg")
    assert status == 0
    assert "loss without" in out
    assert (workspace / "layers.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.yaml", "--out", "x"], "no recipe at missing.yaml; check"),
        (["evaluate", "nowhere"], "is no run folder"),
        (["predict", ".", "."], "holds no audio"),
        (["prepare", "nowhere.csv"], "expected a manifest or a Kaldi folder"),
        (["parts", "interfaces"], "Did you mean 'interface'"),
        (["sweep", "missing.yaml"], "no recipe at missing.yaml"),
    ],
)
def test_errors_say_what_was_found(run, workspace, arguments, message):
    (workspace / "recipe.yaml").touch()
    status, _, errors = run(*arguments)
    assert status == 2
    assert message in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "serv"], "'what': 'serv' is not one of 'fusion'"),
        (["bench", "serv"], "Did you mean 'serve'?"),
        (["plan", "a.yaml", "--gpus", "q"], "Invalid value for '--gpus'"),
        (["predict", "run", "a.wav", "--format", "xml"], "'--format': 'xml' is not one of 'text'"),
    ],
)
def test_wrong_choices_name_the_nearest(arguments, message):
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Value error" not in done.stderr


def test_help_says_where_to_begin_and_what_each_command_does():
    shown = CliRunner().invoke(cli.app, ["--help"]).stdout
    assert "New here? Run: speechfuse quickstart" in " ".join(shown.split())
    assert shown.index("Begin here:") < shown.index("quickstart  Make") < shown.index("Data:")
    assert "..." not in shown.partition("Options:")[2]
    for name in ("pseudo-label", "alpha", "bench", "publish"):
        assert f"\n  {name} " in shown


def test_the_version_is_that_of_the_package(run):
    assert run("--version")[:2] == (0, f"speechfuse {speechfuse.__version__}\n")


def test_the_package_has_the_class_that_load_returns():
    assert speechfuse.SpeechModel.__name__ == "SpeechModel"
    assert {*speechfuse.__all__} == {"SpeechModel", "__version__", "load"}


def test_a_folder_of_a_sweep_names_its_runs(run, workspace):
    for name in ("both/seed1", "both/seed2"):
        (workspace / "out" / name).mkdir(parents=True)
        (workspace / "out" / name / "recipe.yaml").touch()
    status, _, errors = run("evaluate", "out")
    assert status == 2
    assert "name one of the runs below it: out/both/seed1, out/both/seed2" in errors


def test_parts_lists_every_option(run):
    status, out, _ = run("parts", "interface")
    assert status == 0
    assert "compat = 'ceil'" in out
    assert "ctc" not in out


def test_a_prepared_corpus_is_mixed_into_another(run, tiny_corpus, workspace):
    assert run("prepare", tiny_corpus, "--out", "corpora/tones")[0] == 0
    status, out, _ = run("prepare", "corpora/tones", "--mix", "2")
    assert status == 0
    assert "folder: corpora/tones-mix" in out
    assert (workspace / "corpora/tones/corpus.json").is_file()
    status, _, errors = run("prepare", "corpora/tones", "--mix", "2", "--out", "corpora/tones")
    assert status == 2
    assert "holds the clips that are wanted" in errors
