"""The files under examples/ do what README and docs say of them."""

from pathlib import Path

import pytest
import torch

from speechfuse.build import read_recipe
from speechfuse.errors import RecipeError
from speechfuse.train import train_run

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_an_interface_of_ones_own_trains(workspace, tone_recipe, monkeypatch):
    """One file in the current folder, named in the recipe; its options are checked as ours are."""
    (workspace / "mean_of_layers.py").write_text((EXAMPLES / "mean_of_layers.py").read_text())
    monkeypatch.syspath_prepend(workspace)
    kind = "mean_of_layers:MeanOfLayers"
    recipe = read_recipe(tone_recipe, [f"fusion.interface={{kind: '{kind}', skip: 0}}"])
    metrics = train_run(recipe, workspace / "run")
    assert metrics["test"]["emotion"]["accuracy"]["speakers"] == 2
    with pytest.raises(RecipeError, match="Did you mean 'skip'"):
        read_recipe(tone_recipe, [f"fusion.interface={{kind: '{kind}', skp: 1}}"])


def test_the_readme_shows_the_example():
    readme = (EXAMPLES.parent / "README.md").read_text()
    shown = readme.split('```python title="mean_of_layers.py"\n')[1].split("```")[0]
    assert shown in (EXAMPLES / "mean_of_layers.py").read_text()


def test_it_is_the_mean(stack, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from mean_of_layers import MeanOfLayers

    given = stack(garbage=0.0)
    part = MeanOfLayers(given.spec, tasks=["asr"], skip=1)
    torch.testing.assert_close(part(given, "asr").hidden, given.stacked()[1:].mean(0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_file:Part", "cannot be imported: ModuleNotFoundError"),
        ("json:Part", "cannot be imported: AttributeError"),
        ("half_written:Part", "cannot be imported: SyntaxError"),
        ("json:loads", r"is no subclass of speechfuse\.contracts\.Interface; make it one"),
        ("json:JSONDecoder", "is no subclass of"),
        ("speechfuse.contracts:Interface", "lacks forward"),
    ],
)
def test_a_part_that_cannot_be_used_is_named(workspace, tone_recipe, kind, message):
    (workspace / "half_written.py").write_text("class Part(")
    with pytest.raises(RecipeError, match=message):
        read_recipe(tone_recipe, [f"fusion.interface={{kind: '{kind}'}}"])
