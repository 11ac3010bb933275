"""The recipes of HarmoniFuse's experiments: every row builds, and takes a step at its size."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import trees
from speechfuse import build, cli
from speechfuse.checkpoint import Run
from speechfuse.data.teachers import Seen
from speechfuse.experiments.claims import claim_tables
from speechfuse.experiments.report import pseudo_labels, result_tables
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.spread import spread_tables
from speechfuse.experiments.sweep import cells, read_sweep
from speechfuse.pseudo.labelling import pseudo_label
from speechfuse.pseudo.teacher import Teacher
from speechfuse.types import LayerStack, Tokens

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted((RECIPES / "harmonifuse").glob("*.yaml"))
SWEEPS = [path for path in ALL if "\nrows:" in path.read_text()]  # others are of one run
BASE, LARGE = (768, 12, 3072), (1024, 24, 4096)
PUBLISHED = {
    "hubert": ("hubert", BASE),
    "wav2vec2": ("wav2vec2", BASE),
    "wavlm": ("wavlm", BASE),
    "wavlm_large": ("wavlm", LARGE),
}
OPTIONS = {"num_tokens": 31, "num_classes": 4, "longest": 9}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Overrides that put configurations of full size in the place of encoders of the hub."""
    root = tmp_path_factory.mktemp("published")
    found = {}
    for name, (kind, (dim, layers, ffn)) in PUBLISHED.items():
        config = {"model_type": kind, "hidden_size": dim, "num_hidden_layers": layers}
        config |= {"intermediate_size": ffn, "num_attention_heads": dim // 64}
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        found[name] = f"upstreams.{name}.source={root / name}"
    whisper = root / "upstreams" / "whisper-base-encoder"
    whisper.mkdir(parents=True)
    config = {"model_type": "whisper", "d_model": 512, "encoder_layers": 6, "num_mel_bins": 80}
    config |= {"encoder_ffn_dim": 2048, "encoder_attention_heads": 8, "max_source_positions": 1500}
    (whisper / "config.json").write_text(json.dumps(config))
    found["root"] = str(root)
    return found


def opened(path, places, monkeypatch):
    monkeypatch.setenv("SPEECHFUSE_REAL", places["root"])
    names = [name for name in PUBLISHED if f"    {name}: {{kind" in path.read_text()]
    return read_sweep(path, [f"recipe.{places[name]}" for name in names])


def model_of(recipe):
    tasks = {
        name: SimpleNamespace(head_options=lambda kind=entry.head.kind: options_of(kind))
        for name, entry in recipe.tasks.items()
    }
    return build.build_model(recipe, build.stack_specs(recipe), tasks)


def options_of(kind):
    sizes = {"text": ("num_tokens", "longest"), "ctc": ("num_tokens",)}
    wanted = sizes.get(kind, ("num_classes",))
    return {name: OPTIONS[name] for name in wanted}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_experiment_compares_rows_over_three_seeds(path, places, monkeypatch, tmp_path):
    sweep = opened(path, places, monkeypatch)
    assert sweep.name == path.stem
    assert sweep.baseline or sweep.claims
    assert len(sweep.seeds) == 3
    trained = [row for row, entry in sweep.rows.items() if not entry.best_of]
    assert len(cells(sweep, tmp_path)) == 3 * len(trained) * len(sweep.conditions)
    assert f"sweep recipes/harmonifuse/{path.stem}.yaml" in path.read_text()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_row_of_every_experiment_takes_a_step(path, places, monkeypatch, tmp_path):
    sweep = opened(path, places, monkeypatch)
    for cell in cells(sweep, tmp_path):
        if cell.seed != sweep.seeds[0] or cell.condition != next(iter(sweep.conditions)):
            continue
        still = untrained(cell.recipe)
        assert not still, f"{cell.row}: no task trains {still}"


def untrained(recipe):
    """Parameters that a batch of each task leaves without a gradient."""
    model = model_of(recipe)
    torch.manual_seed(0)
    stacks = [
        LayerStack(
            tuple(torch.randn(spec.num_layers, 2, 40, spec.dim)), torch.tensor([40, 25]), 50.0
        )
        for spec in build.stack_specs(recipe)
    ]
    for name, entry in recipe.tasks.items():
        writes = entry.head.kind in ("text", "ctc")
        ids = torch.randint(1, 4, (2, 3 if writes else 1))
        sizes = torch.tensor([3, 2] if writes else [1, 1])
        loss = model.loss(stacks, name, Tokens(ids, sizes))
        (loss.total / loss.count).backward()
    return {name for name, p in model.named_parameters() if p.grad is None}


def test_the_parameters_of_one_task_alone_are_those_of_it_among_two(places, monkeypatch, tmp_path):
    """An oracle of one task has the size of the full model, without the other task's parameters."""
    path = RECIPES / "harmonifuse" / "multitask.yaml"
    sweep = opened(path, places, monkeypatch)
    found = {cell.row: cell for cell in cells(sweep, tmp_path)}
    full = model_of(found["full"].recipe)
    for row, task in (("oracle ASR", "asr"), ("oracle SER", "emotion")):
        for updates in ("of the task", "in all"):
            oracle = model_of(found[f"{row}, as many updates {updates}"].recipe)
            assert sum(p.numel() for p in oracle.parameters()) == full.parameters_of(task)


def test_updates_of_a_task_are_as_many_as_the_names_of_rows_say(places, monkeypatch, tmp_path):
    sweep = opened(RECIPES / "harmonifuse" / "multitask.yaml", places, monkeypatch)
    steps = {cell.row: cell.recipe.training.steps for cell in cells(sweep, tmp_path)}
    total = steps["full"]
    assert steps["oracle ASR, as many updates in all"] == total
    assert steps["oracle SER, as many updates in all"] == total
    assert steps["oracle ASR, as many updates of the task"] == total * 3 // 4
    assert steps["oracle SER, as many updates of the task"] == total // 4
    more = opened(RECIPES / "harmonifuse" / "more_tasks.yaml", places, monkeypatch)
    for cell in cells(more, tmp_path):
        shares = cell.recipe.training.interleave
        assert cell.recipe.training.steps / sum(shares.values()) == total / 4


@pytest.fixture
def real(places, monkeypatch, tmp_path):
    """A reader of sweeps on real speech, with noise of as many speakers in the place of it."""
    monkeypatch.setenv("SPEECHFUSE_REAL", places["root"])
    monkeypatch.setenv("SPEECHFUSE_CORPORA", str(tmp_path / "corpora"))
    found = {}
    for name, speakers in {"fsdd": 6, "emodb": 10, "librispeech_test_other_100": 10}.items():
        found[name] = Path(places["root"]) / "data" / name / "manifest.tsv"
        found[name].parent.mkdir(parents=True, exist_ok=True)
        rows = ["path\tspeaker\ttext\temotion"]
        for number in range(speakers):
            noise = np.random.default_rng(number).normal(0, 0.1, 4000)
            soundfile.write(found[name].parent / f"{number}.wav", noise, 16000)
            rows.append(f"{number}.wav\ts{number}\tnine\t{'sad' if number % 2 else 'happy'}")
        found[name].write_text("\n".join(rows) + "\n")

    def read(name):
        path = RECIPES / "real" / f"{name}.yaml"
        joined = name == "harmonifuse"  # made from FSDD's manifest, by hand
        changes = [f"recipe.tasks.asr.corpus={found['fsdd']}"] if joined else []
        return read_sweep(path, changes)

    return read


@pytest.mark.parametrize(
    ("name", "speakers"), [("harmonifuse", 6), ("harmonifuse_librispeech", 10)]
)
def test_rows_on_real_speech_take_a_step_and_test_speakers_who_are_not_heard(
    real, name, speakers, tmp_path
):
    sweep = real(name)
    found = cells(sweep, tmp_path)
    assert len(found) == 5 * 3 * len(sweep.rows)
    tested = {"asr": set(), "emotion": set()}
    for cell in found:
        for task, entry in cell.recipe.tasks.items():
            split = entry.split
            tested[task] |= {*split.test_speakers}
            heard = {*split.train_speakers, *split.dev_speakers}
            assert heard
            assert heard.isdisjoint(split.test_speakers)
    assert {task: len(names) for task, names in tested.items()} == {"asr": speakers, "emotion": 10}
    for row in sweep.rows:
        still = untrained(next(cell.recipe for cell in found if cell.row == row))
        assert not still, f"{row}: no task trains {still}"


@pytest.mark.parametrize("name", ["harmonifuse", "harmonifuse_librispeech"])
def test_updates_on_real_speech_are_as_many_as_the_names_of_rows_say(real, name, tmp_path):
    by_row = {cell.row: cell.recipe.training for cell in cells(real(name), tmp_path)}
    total, shares = by_row["one model"].steps, by_row["one model"].interleave
    own = {task: total * share / sum(shares.values()) for task, share in shares.items()}
    alone = [row for row in by_row if " alone" in row]
    assert len(alone) >= 4
    for row in alone:
        task = "asr" if row.startswith("ASR") else "emotion"
        assert by_row[row].steps == (total if row.endswith("in all") else own[task])


PAPER = RECIPES / "real" / "harmonifuse_paper.yaml"
ALONE = ["ASR alone, as many updates of it", "SER alone, as many updates of it"]


class BySeconds(Teacher):
    """Names the emotion of a clip by its length, and has seen nothing that is tested."""

    source, label, seen, name = "seconds", "emotion", (Seen("elsewhere"),), "seconds@1"
    classes = wanted = ["angry", "happy", "neutral", "sad"]

    def identity(self):
        return {"weights_sha256": "1"}

    def load(self):
        pass

    def probabilities(self, clips):
        return torch.eye(4)[[round(len(clip) / 16000) - 1 for clip in clips]].double()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """What the recipe's own commands make of small trees in the layouts of the three corpora."""
    folder = tmp_path_factory.mktemp("paper")
    lines = [line.removeprefix("#").strip() for line in PAPER.read_text().splitlines()]
    (parts,) = (line.removeprefix("P=") for line in lines if line.startswith("P="))
    trees.librispeech(folder / "LibriSpeech", parts.removeprefix("part=").split(","))
    trees.iemocap(folder / "IEMOCAP_full_release")
    trees.emilia(folder, "en", shards=1, clips=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            if line.startswith("speechfuse prepare"):
                words = shlex.split(line.replace("$P", parts))[1:]
                result = CliRunner().invoke(cli.app, words)
                assert result.exit_code == 0, result.output
        assert pseudo_label("emilia", BySeconds(), Path("labels/emilia"))["kept"] == 4
    return folder


def test_every_row_of_the_papers_size_builds_there(places, corpora, monkeypatch, tmp_path):
    monkeypatch.chdir(corpora)
    sweep = read_sweep(PAPER, [f"recipe.{places['wavlm_large'].replace('_large', '', 1)}"])
    found = cells(sweep, tmp_path)
    assert f"That is {len(found)} runs" in PAPER.read_text()
    folds = {row: {cell.fold for cell in found if cell.row == row} for row in sweep.rows}
    for row, numbers in folds.items():
        assert numbers == ({0} if row.startswith("ASR") else {*range(5)}), row
    tested = [cell.recipe.tasks["emotion"].split for cell in found if cell.row == "one model"][::3]
    assert [one.test_speakers for one in tested] == [
        (f"Ses0{session}F", f"Ses0{session}M") for session in range(1, 6)
    ]
    steps = {cell.row: cell.recipe.training.steps for cell in found}
    shares = found[0].recipe.training.interleave
    for row in steps:
        updates = 1.0
        if row in ALONE:
            updates = shares["asr" if row.startswith("ASR") else "emotion"] / sum(shares.values())
        assert steps[row] == updates * steps["one model"], row
    for row in sweep.rows:
        recipe = next(cell.recipe for cell in found if cell.row == row)
        (spec,) = build.stack_specs(recipe)
        assert (spec.num_layers, spec.dim) == (25, 1024)
        with torch.device("meta"):
            model = model_of(recipe)
        context = model.reader.context
        assert (context.spec.num_layers, context.spec.dim, context.join) == (12, 1024, 1)
        blocks = sum(p.numel() for p in context.blocks.parameters())
        assert blocks == pytest.approx(12 * 12 * 1024**2, rel=0.01)  # plain: 4 d^2 and 8 d^2 each
        gates = {
            n: tuple(p.shape)
            for n, p in model.fusion_of(next(iter(recipe.tasks))).named_parameters()
        }
        fused = row != "one model without fusions"
        assert gates == {f"interface.logits.{task}": (24,) for task in recipe.tasks if fused}


@pytest.mark.timeout(600)
def test_the_papers_protocol_runs_on_small_trees(corpora, encoder, monkeypatch, tmp_path):
    """Two test sets apart, WA and UA pooled and over sessions, and the claim of the paper."""
    monkeypatch.chdir(corpora)
    small = ["recipe.context={preset: tiny, layers: 2, dim: 32, heads: 2}", "seeds=[1]"]
    small += ["recipe.training.steps=2", "recipe.training.evaluate_every=1", "baseline=null"]
    small += ["recipe.tasks.emotion.batch_seconds=8"]  # 240 are nearly all of these short clips
    small += [f"rows.{row}.training={{steps: 1, evaluate_every: 1}}" for row in ALONE]
    source = f"recipe.upstreams.wavlm.source={encoder('wavlm large')}"
    sweep = read_sweep(PAPER, [*small, source])
    done = run_sweep(sweep, tmp_path, rows=["one model", *ALONE])
    assert len(done) == 5 + 1 + 5
    (_, columns, rows), *_ = result_tables(sweep, done)
    scores = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    one, asr, ser = (scores[name] for name in ("one model", *ALONE))
    for mine in (one, asr):
        for metric in ("WER", "WER of test-clean", "WER of test-other", "CER of test-other"):
            assert "[" in mine[metric]
        assert mine["accuracy (WA)"] == "-" or mine is one
    assert ser["WER of test-other"] == "-"
    numbers = [
        row
        for name, row in zip(columns, zip(*rows, strict=True), strict=True)
        if name == "published"
    ]
    assert [column[0] for column in numbers] == ["3.5", "5.1", "76.31", "76.51"]
    ((title, names, spread),) = spread_tables(sweep, done)
    assert "mean and standard deviation over folds" in title
    held = dict(zip(names, spread[0], strict=True))
    runs = [Run(cell.folder).metrics()["test"] for cell in done if cell.row == "one model"]
    for name, task, metric in (
        ("emotion: accuracy (WA)", "emotion", "accuracy"),
        ("emotion: balanced accuracy (UA)", "emotion", "balanced_accuracy"),
        ("asr: WER of test-other", "asr", "wer of test-other"),
    ):
        values = [100 * run[task][metric]["value"] for run in runs]
        assert held[name] == f"{np.mean(values):.1f} \u00b1 {np.std(values, ddof=1):.1f}"
    assert "\u00b1" not in dict(zip(names, spread[1], strict=True))["asr: WER"]  # one run
    ((_, _, claims),) = claim_tables(sweep, done)
    assert [line[1] for line in claims] == ALONE
    assert pseudo_labels(done)[0].startswith("one model; SER alone")
