import pytest
import torch
from torch import nn

from speechfuse.build import build_model, read_recipe, stack_specs
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks

pytestmark = pytest.mark.recipe  # a corpus is read


@pytest.fixture
def made(workspace, tone_recipe):
    """A model of these tasks, which are kinds of task under names of their own."""

    def make(names, changes=None):
        kinds = [kind for kind in ("emotion", "verification") if kind in tone_recipe["tasks"]]
        tasks = {
            name: {"kind": kind, **tone_recipe["tasks"][kind]}
            for name, kind in zip(names, kinds, strict=True)
        }
        recipe = read_recipe(merged(tone_recipe | {"tasks": tasks}, changes or {}))
        loaded = load_tasks(recipe)
        return build_model(
            recipe, stack_specs(recipe), {name: data.task for name, data in loaded.items()}
        )

    return make


@pytest.mark.parametrize("names", [("emotion", "verification"), ("heads", "weight"), ("bias", "a")])
@pytest.mark.parametrize("per_task", [False, True])
def test_parameters_are_a_task_s_own_whatever_it_is_called(made, names, per_task):
    model = made(names, {"fusion": {"per_task": per_task, "interface": {"kind": "gated_encoder"}}})
    owners = {name: model.task_of(name) for name, _ in model.named_parameters()}
    for name in names:
        own = {key for key, owner in owners.items() if owner == name}
        heads = {f"heads.{name}.{key}" for key, _ in model.heads[name].named_parameters()}
        assert heads <= own
        logits = f"fusions.{name if per_task else 'all_tasks'}.interface.logits.{name}"
        assert logits in own
    counts = [model.parameters_of(name) for name in names]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    shared = sum(size for name, size in sizes.items() if owners[name] is None)
    assert sum(counts) == sum(sizes.values()) + shared


def test_a_dictionary_of_other_things_is_shared(made):
    model = made(("key", "value"))
    model.fusion_of("key").extra = nn.ModuleDict({"key": nn.Linear(2, 1), "query": nn.Linear(2, 1)})
    model.fusion_of("key").own = nn.ParameterDict({"key": torch.zeros(3)})
    found = {name: model.task_of(name) for name, _ in model.named_parameters()}
    place = "fusions.all_tasks" if "all_tasks" in model.fusions else "fusions.key"
    assert found[f"{place}.extra.key.weight"] == (None if "all_tasks" in place else "key")
    assert found[f"{place}.own.key"] == "key"
