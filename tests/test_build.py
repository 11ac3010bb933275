"""One encoder under two names, which only its content tells."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import RecipeError


def recipe_of(upstreams):
    return {
        "upstreams": upstreams,
        "fusion": {"merge": {"kind": "add"}, "interface": {"kind": "weighted_sum"}},
        "tasks": {"asr": {"corpus": "nothing-yet", "head": {"kind": "ctc"}}},
    }


@pytest.mark.parametrize(
    ("kind", "change", "one"),
    [
        ("hubert", {}, True),
        ("hubert", {"length_policy": "equal", "whisper_pad": 1}, True),
        ("hubert", {"length_policy": "padded"}, False),
        ("hubert", {"weights": "random"}, False),
        ("whisper", {"length_policy": "equal"}, True),
        ("whisper", {"whisper_pad": 1}, False),
        ("whisper", {"long": "refuse"}, False),
    ],
)
def test_one_encoder_under_two_names_is_refused_when_a_run_begins(
    workspace, encoder, kind, change, one
):
    """By its content: another folder, a later commit or an idle option make no second encoder."""
    first = {"kind": "huggingface", "source": str(encoder(kind))}
    shutil.copytree(first["source"], workspace / "copy")
    upstreams = {"a": first, "b": first | {"source": str(workspace / "copy")} | change}
    recipe = read_recipe(recipe_of(upstreams))
    if not one:
        Run(workspace / "run").begin(recipe)
        return
    with pytest.raises(RecipeError, match=r"'a' and 'b' are the same encoder \(equal config"):
        Run(workspace / "run").begin(recipe)
    asked_for = read_recipe(recipe_of(upstreams), ["fusion.allow_repeats=true"])
    Run(workspace / "run").begin(asked_for)
    Run(workspace / "run").begin(recipe)  # what is there goes on


def test_a_copy_with_other_weights_or_settings_is_another_encoder(workspace, encoder):
    first = {"kind": "huggingface", "source": str(encoder("hubert"))}
    copy = workspace / "copy"
    shutil.copytree(first["source"], copy)
    upstreams = {"a": first, "b": first | {"source": str(copy)}}
    recipe = read_recipe(recipe_of(upstreams))
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    other = settings | {"do_normalize": not settings["do_normalize"]}
    (copy / "preprocessor_config.json").write_text(json.dumps(other))
    Run(workspace / "one").begin(recipe)
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    tensors = load_file(copy / "model.safetensors")
    tensors[min(tensors)] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    Run(workspace / "two").begin(recipe)


def test_a_tuned_copy_is_another_encoder(workspace, encoder):
    first = {"kind": "huggingface", "source": str(encoder("hubert"))}
    shutil.copytree(first["source"], workspace / "copy")
    upstreams = {"a": first, "b": first | {"source": str(workspace / "copy")}}
    tuned = {"training": {"train_upstream": {"b": "all"}}}
    Run(workspace / "run").begin(read_recipe(recipe_of(upstreams) | tuned))
