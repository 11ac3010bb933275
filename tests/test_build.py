"""One encoder under two names, which only its content tells; what decides its layers."""

import json
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from speechfuse.build import layer_facts, read_recipe, read_upstreams
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


OWN = """
from speechfuse.merging.add import Add
from speechfuse.upstreams.filterbank import Filterbank

class Level(Filterbank):
    def forward(self, wav):
        return super().forward(wav)

class Sum(Add):
    def forward(self, stacks):
        return super().forward(stacks)
"""
EDITED = OWN.replace("super().forward(stacks)", "super().forward(stacks[:1])").replace(
    "super().forward(wav)", "super().forward(wav[:1])"
)


def test_layers_of_ones_own_part_are_others_once_its_file_is_another(workspace, monkeypatch):
    """Identity, options and versions stay; the class may be named by another file than its own."""
    monkeypatch.syspath_prepend(str(workspace))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (workspace / "named.py").write_text("from own_parts import Level, Sum\n")
    mel = {"kind": "filterbank", "num_mels": 24}
    own = {"kind": "named:Level", "num_mels": 24}

    def facts(text, upstreams, merge="add", reduce="none"):
        (workspace / "own_parts.py").write_text(text)
        for module in ("named", "own_parts"):
            sys.modules.pop(module, None)
        fusion = {"merge": {"kind": merge}, "interface": {"kind": "weighted_sum"}}
        changes = {"fusion": fusion, "store": {"reduce": reduce}}
        recipe = read_recipe(recipe_of(upstreams) | changes)
        return [layer_facts(recipe, n, up) for n, up in read_upstreams(recipe).items()]

    for given in (
        ({"own": own},),
        ({"mel": mel, "own": own}, "add", "merged"),
        ({"mel": mel, "fine": mel | {"frame_rate": 50}}, "named:Sum", "merged"),
    ):
        before = facts(OWN, *given)
        assert facts(OWN, *given) == before
        assert facts(EDITED, *given) != before
    before = facts(OWN, {"mel": mel})
    assert facts(EDITED, {"mel": mel}) == before  # no part of ours
    assert "code" not in before[0]
