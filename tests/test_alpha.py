"""Alpha analysed: known weights have known divergence, nothing swapped changes nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from speechfuse import build
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.cli import app
from speechfuse.errors import RunError
from speechfuse.experiments.alpha.divergence import evenness, js_bits, mean_over_utterances
from speechfuse.experiments.alpha.flags import alpha_flags
from speechfuse.experiments.alpha.paraphrases import probed, read_paraphrases
from speechfuse.experiments.alpha.run import PROMPT, READ, analyse_alpha
from speechfuse.experiments.alpha.sample import means, open_sample, read_alpha, swapped, written
from speechfuse.experiments.alpha.shares import FACTORS, crossed, variance_shares
from speechfuse.experiments.diagnosis import _alpha
from speechfuse.experiments.sweep import Cell, cells, read_sweep
from speechfuse.interfaces.prompt_adaptive import PromptAdaptiveFusion
from speechfuse.recipe import merged
from speechfuse.train import train_run
from speechfuse.types import StackSpec

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

RECIPES = Path(__file__).parents[1] / "recipes" / "harmonifuse"
OLD = {task: [f"{task} {i}" for i in range(14)] for task in ("asr", "emotion")}
NEW = {task: [f"{task} anew {i}" for i in range(6)] for task in ("asr", "emotion")}
SHARED = {"context": {"interface": {"kind": "prompt_adaptive", "scalar": "shared"}}}


@pytest.fixture(scope="module")
def trained(tiny_corpus, tmp_path_factory):
    """Runs of two tasks, made once for each way to train."""
    root = tmp_path_factory.mktemp("alphas")
    made = {}

    def make(name, change=None):
        if name not in made:
            corpus = str(tiny_corpus)
            recipe = {
                "seed": 1,
                "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
                "fusion": {"interface": {"kind": "weighted_sum"}, "per_task": False},
                "context": {"preset": "tiny", "layers": 3, "dim": 32, "heads": 2, "join": 4},
                "tasks": {
                    "asr": {"corpus": corpus, "units": "characters", "head": {"kind": "text"}},
                    "emotion": {"corpus": corpus, "head": {"kind": "classifier"}},
                },
                "training": {"steps": 12, "batch_seconds": 4, "learning_rate": 1e-2},
                "store": {"folder": str(root / "stores")},
            }
            train_run(read_recipe(merged(recipe, change or {})), root / name)
            made[name] = root / name
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHFUSE_CORPORA", str(root / "corpora"))
        yield make


def stirred(run):
    """With interfaces that tell tasks, prompts and sounds apart clearly, as far as they can."""
    torch.manual_seed(4)
    for parameter in run.model.reader.interface.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    return run


def test_known_weights_have_the_divergence_that_is_known():
    one = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    other = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    half = 0.75 * np.log2(4 / 3) + 0.25 * np.log2(4)  # entropy of the mixture (3/4, 1/4)
    assert js_bits(one, other).tolist() == pytest.approx([1.0, 0.0, half - 0.5])
    assert js_bits(one, other).tolist() == js_bits(other, one).tolist()
    assert evenness(one).tolist() == pytest.approx([0, 1, 1])
    evidence = mean_over_utterances(torch.tensor([1.0, 2.0, 6.0]), ["b", "a", "b"])
    assert evidence.point() == pytest.approx(3)


def ways(of, positions=(4, 2, 3)):
    """Alpha made by a function of gate, scalar, prompt, utterance and position."""
    found = []
    for u, count in enumerate(positions):
        rows = torch.zeros(2, 2, 2, count, 2, dtype=torch.float64)
        for g, s, p, t in np.ndindex(2, 2, 2, count):
            value = 0.5 + of(g, s, p, u, t)
            rows[g, s, p, t] = torch.tensor([value, 1 - value])
        found.append(rows)
    return found


@pytest.mark.parametrize(
    ("of", "factor"),
    [
        (lambda g, s, p, u, t: 0.1 * g, "encoder gate"),
        (lambda g, s, p, u, t: 0.1 * s, "task scalar"),
        (lambda g, s, p, u, t: 0.1 * p, "prompt"),
        (lambda g, s, p, u, t: 0.1 * u, "utterance"),
        (lambda g, s, p, u, t: 0.1 * (t % 2 - 0.5) * (u != 2), "position"),
        (lambda g, s, p, u, t: 0.1 * (s - 0.5) * (p - 0.5), "together"),
    ],
)
def test_what_alpha_varies_with_explains_all_of_it(of, factor):
    shares = variance_shares(ways(of), ["a", "b", "a"])
    assert list(shares) == list(FACTORS)
    assert {name: round(one.point(), 9) for name, one in shares.items()} == {
        name: float(name == factor) for name in FACTORS
    }


def test_shares_sum_to_one_and_two_equal_causes_share_alike():
    shares = variance_shares(ways(lambda g, s, p, u, t: 0.1 * s + 0.1 * p + 0.01 * t), ["a"] * 3)
    values = {name: one.point() for name, one in shares.items()}
    assert sum(values.values()) == pytest.approx(1)
    assert values["task scalar"] == pytest.approx(values["prompt"])
    assert 0 < values["position"] < values["prompt"]


def test_alpha_that_never_varies_has_no_shares():
    shares = variance_shares(ways(lambda *_: 0.0), ["a", "b", "c"])
    assert [one.point() for one in shares.values()] == [0.0] * len(FACTORS)


def test_swapping_nothing_changes_nothing_and_swaps_do_what_they_say(trained):
    run = stirred(open_sample(trained("plain"), 10))
    plain = means(read_alpha(run, run.model, "asr", "prompt"))
    same = swapped(run.model, "asr", scalar_of="asr", prompt_of="asr")
    assert torch.equal(plain, means(read_alpha(run, same, "asr", "prompt")))
    both = swapped(run.model, "asr", scalar_of="emotion", prompt_of="emotion")
    other = means(read_alpha(run, run.model, "emotion", "prompt"))
    assert torch.equal(other, means(read_alpha(run, both, "asr", "prompt")))
    for change in ({"scalar_of": "emotion"}, {"prompt_of": "emotion"}):
        found = means(read_alpha(run, swapped(run.model, "asr", **change), "asr", "prompt"))
        assert (found - plain).abs().max() > 1e-3
        assert (found - other).abs().max() > 1e-3
    assert torch.equal(plain, means(read_alpha(run, run.model, "asr", "prompt")))


def test_a_shared_scalar_has_nothing_to_swap(trained):
    run = stirred(open_sample(trained("shared", SHARED), 10))
    other = swapped(run.model, "asr", scalar_of="emotion")
    plain, found = (means(read_alpha(run, m, "asr", "prompt")) for m in (run.model, other))
    assert torch.equal(plain, found)
    shares = variance_shares(crossed(run, "speech"), run.speakers)
    assert shares["task scalar"].point() == pytest.approx(0, abs=1e-9)
    assert shares["prompt"].point() > 0


def test_static_scores_have_no_variance_but_by_scalar(trained):
    static = {"context": {"interface": {"kind": "prompt_adaptive", "scores": "static"}}}
    run = stirred(open_sample(trained("static", static), 10))
    shares = variance_shares(crossed(run, "speech"), run.speakers)
    assert shares["task scalar"].point() == pytest.approx(1)
    cells = read_alpha(run, run.model, "asr", "speech")
    assert torch.cat(cells).std(0, correction=0).max() < 1e-9


def test_alpha_of_a_whole_utterance_is_that_of_speech_and_prompt(trained):
    whole = {"context": {"interface": {"kind": "prompt_adaptive", "per": "utterance"}}}
    run = stirred(open_sample(trained("whole", whole), 10))
    at = {
        where: read_alpha(run, run.model, "asr", where, texts=written(run, "asr"))
        for where in ("prompt", "speech", "text")
    }
    for prompt, speech, text in zip(*at.values(), strict=True):
        assert (speech - prompt).abs().max() < 1e-9
        assert (text - prompt).abs().max() < 1e-9
    assert means(at["prompt"]).std(0).max() > 1e-4


def test_the_sample_is_the_same_for_all_tasks_and_held_out(trained):
    run = open_sample(trained("plain"), 10)
    utterances = [u for _, batch in run.batches for u in batch]
    assert len({u.id for u in utterances}) == len(utterances) == 10
    assert {u.speaker for u in utterances} == {"s6", "s7"}
    cells = {task: read_alpha(run, run.model, task, "speech") for task in run.tasks}
    assert [len(one) for one in cells["asr"]] == [len(one) for one in cells["emotion"]]


def interface(**options):
    return PromptAdaptiveFusion(StackSpec(4, 8, 50.0), tasks=["asr"], **options)


def test_a_uniform_and_a_collapsed_alpha_are_named_with_the_number():
    generator = torch.Generator().manual_seed(1)
    even = [torch.full((5, 4), 0.25) for _ in range(3)]
    (_, uniform), (_, static) = alpha_flags(interface(), even, 5.0)
    assert "entropy 100.00 % of that of 4 equal layers; raise training.layer_rate from 5" in uniform
    assert "by 0.00 % of its mean; try context.interface.scores=dynamic" in static
    uneven = [torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(5, 4) for _ in range(3)]
    assert [f.kind for f in alpha_flags(interface(), uneven, 5.0)] == ["static alpha"]
    assert list(alpha_flags(interface(scores="static"), uneven, 5.0)) == []
    lively = [(2 * torch.randn(5, 4, generator=generator)).softmax(-1) for _ in range(3)]
    assert list(alpha_flags(interface(), lively, 5.0)) == []


def test_a_sweep_names_alpha_that_never_left_its_start(trained, tmp_path):
    """Of the first seed alone: every run takes a pass over held-out audio."""
    shutil.copytree(trained("plain"), tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    state = load_file(path)
    for name in state:
        if name.startswith("reader.interface"):
            state[name].zero_()
    save_file(state, path, about)
    recipe = Run(tmp_path / "run").recipe()
    cell = Cell("full", "", 0, 1, recipe, tmp_path / "run")
    found = [(task, failure.kind) for task, failure in _alpha(cell, cell)]
    kinds = ("uniform alpha", "static alpha")
    assert found == [(task, kind) for task in ("asr", "emotion") for kind in kinds]
    assert list(_alpha(replace(cell, seed=2), cell)) == []


def test_alpha_that_is_linear_in_the_prompt_is_read_from_it_and_chance_is_not():
    generator = torch.Generator().manual_seed(2)
    tasks = ["asr"] * 24 + ["emotion"] * 24
    names = [f"{task} {i}" for i, task in enumerate(tasks)]
    x = torch.randn(48, 6, generator=generator, dtype=torch.float64)
    alpha = x @ torch.randn(6, 4, generator=generator, dtype=torch.float64)
    unseen = [i % 24 >= 16 for i in range(48)]
    found = probed(x, alpha, tasks, names, unseen)
    assert found.everything.point() > 0.999
    assert len(found.unseen.speakers) == 16
    chance = torch.randn(48, 4, generator=generator, dtype=torch.float64)
    assert probed(x, chance, tasks, names, unseen).within.point() < 0.2


def test_the_command_writes_tables_picture_and_numbers(trained, tmp_path):
    words = {"tasks": {task: {"prompts": several} for task, several in OLD.items()}}
    folder = trained("words", words)
    (tmp_path / "new.yaml").write_text(json.dumps(NEW))
    options = ["--prompts", str(tmp_path / "new.yaml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["alpha", str(folder), *options])
    assert result.exit_code == 0, result.output
    for text in (
        "Jensen-Shannon",
        "asr with the scalar of emotion",
        "28 prompts that were trained on",
        "12 that were not",
        "Test sets asked in other words",
    ):
        assert text in " ".join(result.output.split())
    data = json.loads((tmp_path / "out" / "alpha.json").read_text())
    found = {(one["task"], one["place"]): one["mean"] for one in data["runs"][0]["alpha"]}
    assert set(found) == {(t, p) for t in ("asr", "emotion") for p in (PROMPT, READ)}
    assert all(sum(mean) == pytest.approx(1) for mean in found.values())
    assert (tmp_path / "out" / "alpha.png").read_bytes().startswith(b"\x89PNG")


def test_a_swap_is_scored_as_the_run_was(trained):
    """The metric as it is comes from the predictions that training kept."""
    (found,) = analyse_alpha([trained("plain")], 10)
    kept = Run(trained("plain")).metrics()["test"]
    for swap in found.swaps:
        task = found.run.tasks[swap.task].task
        assert swap.own.point() == pytest.approx(kept[swap.task][task.primary]["value"])
    assert {(s.task, s.what) for s in found.swaps} == {
        (task, what) for task in ("asr", "emotion") for what in ("scalar", "prompt", "both")
    }


def test_what_cannot_be_analysed_is_refused(trained, tmp_path):
    with pytest.raises(RunError, match="differ in more than their seed"):
        analyse_alpha([trained("plain"), trained("shared", SHARED)], 10)
    (tmp_path / "new.yaml").write_text(json.dumps(NEW))
    with pytest.raises(RunError, match="asr: expected 20 or more prompts"):
        analyse_alpha([trained("plain")], 10, tmp_path / "new.yaml")
    single = {"context": {"interface": {"kind": "concat_project"}}}
    with pytest.raises(RunError, match="shows no weights of layers"):
        open_sample(trained("concat", single), 10)


def test_a_run_without_a_context_is_refused(tone_recipe, workspace):
    train_run(build.read_recipe(tone_recipe), workspace / "run")
    with pytest.raises(RunError, match="has no context"):
        open_sample(workspace / "run", 10)


def test_the_recipe_has_24_prompts_for_each_task_and_8_of_them_held_out(tmp_path):
    recipe = cells(read_sweep(RECIPES / "alpha.yaml"), tmp_path, ["prompts in words"])[0].recipe
    held_out = read_paraphrases(RECIPES / "paraphrases.yaml", recipe.tasks)
    for task, entry in recipe.tasks.items():
        assert len(held_out[task]) == 8
        assert len({*entry.prompts, *held_out[task]}) == 24
