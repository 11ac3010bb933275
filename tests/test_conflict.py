"""Cosines of the gradients of two tasks, in the log and in the report."""

import math

import pytest
import torch
import yaml
from safetensors.torch import load_file

from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.conflict import LogConflict
from speechfuse.contracts import LossSum
from speechfuse.data.stream import Source
from speechfuse.errors import RecipeError
from speechfuse.experiments.report import write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import read_sweep
from speechfuse.recipe import merged
from speechfuse.train import train_run
from speechfuse.types import Batch, Tokens, Utterance


class Pulled(torch.nn.Module):
    """Two parameters that both tasks share and one of each: a task pulls along a direction."""

    def __init__(self, **directions):
        super().__init__()
        self.shared = torch.nn.Parameter(torch.zeros(2))
        self.own = torch.nn.ParameterDict(
            {t: torch.nn.Parameter(torch.ones(1)) for t in directions}
        )
        self.directions = {t: torch.tensor(d) for t, d in directions.items()}

    def loss(self, inputs, task, targets):
        assert not self.training
        return LossSum((self.shared @ self.directions[task] + self.own[task]).sum(), 1)


def cosines(model):
    clips = [Utterance(f"u{i}", "a.wav", duration=1.0) for i in range(6)]
    sources = {task: Source(clips, 2.0) for task in model.directions}

    def load(task, members):
        return Batch(task, members, [], Tokens(torch.zeros(1, 1), torch.ones(1)))

    look = LogConflict(1, sources, load, seed=3)
    return look.cosines(model, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("other", "angle"), [((2.0, 0.0), 0), ((0.0, 1.0), 90), ((-1.0, 1.0), 135), ((-3.0, 0.0), 180)]
)
def test_the_cosine_is_of_what_both_tasks_share(other, angle):
    model = Pulled(asr=(1.0, 0.0), emotion=other).train()
    found = cosines(model)
    assert found["cosine/asr/emotion"] == pytest.approx(math.cos(math.radians(angle)), abs=1e-6)
    assert found["cosine/asr/asr"] == pytest.approx(1)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_batches_of_a_task_have_no_clip_in_common():
    clips = [Utterance(f"u{i}", "a.wav", duration=1.0) for i in range(9)]
    drawn = {}

    def load(task, members):
        return Batch(task, members, [], None)

    look = LogConflict(1, {"asr": Source(clips, 4.0)}, load, seed=3)
    for half in ("a", "b"):
        drawn[half] = {u.id for u in look._batch("asr", half, 7, torch.device("cpu")).utterances}
    assert len(drawn["a"]) == len(drawn["b"]) == 4
    assert not drawn["a"] & drawn["b"]


@pytest.fixture
def shared(tone_recipe):
    tasks = {name: tone_recipe["tasks"][name] for name in ("asr", "emotion")}
    recipe = {**tone_recipe, "tasks": tasks}
    return merged(recipe, {"fusion": {"per_task": False}, "training": {"log_conflict": 5}})


@pytest.mark.recipe
def test_looking_at_gradients_changes_no_weight(workspace, shared):
    train_run(read_recipe(shared), workspace / "looked")
    plain = merged(shared, {"training": {"log_conflict": None}})
    train_run(read_recipe(plain), workspace / "plain")
    looked, other = (load_file(workspace / n / "model.safetensors") for n in ("looked", "plain"))
    assert all(torch.equal(looked[name], other[name]) for name in other)
    found = [row for row in Run(workspace / "looked").log() if row[1].startswith("cosine/")]
    assert [step for step, *_ in found] == [step for step in (0, 5, 10) for _ in range(3)]
    assert {name for _, name, _ in found} == {
        "cosine/asr/asr",
        "cosine/asr/emotion",
        "cosine/emotion/emotion",
    }
    assert all(-1 <= value <= 1 for _, _, value in found)


def test_one_task_has_nothing_to_look_at(workspace, shared):
    alone = {**shared, "tasks": {"emotion": shared["tasks"]["emotion"]}}
    train_run(read_recipe(alone), workspace / "run")
    assert not [1 for _, name, _ in Run(workspace / "run").log() if name.startswith("cosine")]


def test_tasks_that_share_nothing_are_refused(workspace, shared):
    apart = merged(shared, {"fusion": {"per_task": True}})
    with pytest.raises(RecipeError, match="the tasks share no trained parameters"):
        train_run(read_recipe(apart), workspace / "run")


@pytest.mark.recipe
def test_the_report_draws_cosines_beside_scores(workspace, shared):
    data = {"name": "pulls", "recipe": shared, "rows": {"one": {}}, "seeds": [1]}
    (workspace / "sweep.yaml").write_text(yaml.safe_dump(data))
    sweep = read_sweep(workspace / "sweep.yaml")
    done = run_sweep(sweep, workspace / "out")
    text = write_report(sweep, done, workspace / "out").read_text()
    for panel in ("asr: WER, %", "gradients of asr and emotion: cosine"):
        assert panel in text
    assert "below zero they disagree" in text
