"""Each known failure is made, found and named with its number; a mended one is not."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from speechfuse.build import build_fusion, read_recipe, stack_specs
from speechfuse.data.corpus import write_table
from speechfuse.experiments.diagnosis import _uniform, _worse, diagnose
from speechfuse.experiments.report import write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import Cell, read_sweep
from speechfuse.model import SHARED


@pytest.mark.parametrize(
    ("fusion", "named"),
    [
        ({"interface": {"kind": "weighted_sum"}}, ["weights"]),
        ({"interface": {"kind": "gumbel_selection"}}, ["weights"]),
        ({"interface": {"kind": "mhfa"}}, ["weights of keys", "weights of values"]),
        (
            {"interface": {"kind": "grouped_weighted_sum", "groups": 2}},
            ["weights of group 1", "weights of group 2"],
        ),
        (
            {"interface": {"kind": "mhfa"}, "order": "layers_first", "merge": {"kind": "add"}},
            [f"weights of {model}, {kind}" for model in ("a", "b") for kind in ("keys", "values")],
        ),
        ({"interface": {"kind": "gated_encoder"}, "per_task": False}, ["weights of emotion"]),
        ({"interface": {"kind": "frame_gating"}}, []),  # its gates decide, too
        ({"interface": {"kind": "hconv"}}, []),
    ],
)
def test_every_interface_with_weights_of_its_own_is_looked_at(
    workspace, tone_recipe, encoder, fusion, named
):
    """As they start, all layers count the same; far from it nothing is said."""
    source = {"kind": "huggingface", "source": str(encoder("hubert"))}
    tone_recipe["upstreams"] = {"a": source, "b": source | {"weights": "random"}}
    recipe = read_recipe(tone_recipe | {"fusion": fusion})
    cell = Cell("both", "", 0, 1, recipe, workspace)
    tasks, key = (["emotion"], "emotion") if recipe.fusion.per_task else ([*recipe.tasks], SHARED)
    built = build_fusion(recipe, stack_specs(recipe), tasks)
    state = {f"fusions.{key}.{name}": tensor for name, tensor in built.state_dict().items()}
    save_file(state, workspace / "model.safetensors")
    for failure, what in zip(_uniform(cell, "emotion"), named, strict=True):
        assert failure.line.startswith(f"layer {what} are still uniform, entropy 100.0 %")
    torch.manual_seed(0)
    for name, tensor in state.items():
        if "logits" in name:
            tensor.copy_(torch.randn_like(tensor) * 3)
    save_file(state, workspace / "model.safetensors")
    assert [*_uniform(cell, "emotion")] == []


@pytest.fixture
def ran(workspace, tone_recipe, encoder):
    """A sweep of one encoder, and of it and a random one, of recognition and emotions."""
    shutil.copytree(encoder("hubert"), workspace / "encoder")
    source = {"kind": "huggingface", "source": str(workspace / "encoder")}
    tone_recipe["upstreams"] = {"ssl": source, "random": source | {"weights": "random"}}
    tone_recipe["tasks"].pop("verification")
    tone_recipe["training"]["steps"] = 2
    rows = {"one": {"use": ["ssl"]}, "both": {}}
    data = {"name": "tones", "recipe": tone_recipe, "rows": rows}
    (workspace / "sweep.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    read = read_sweep(workspace / "sweep.yaml")
    return read, run_sweep(read, workspace / "out")


def predicted(cell, task, split, change):
    path = cell.folder / "predictions" / f"{split}_{task}.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    write_table(path, [row | {"prediction": change(row["reference"])} for row in rows])


@pytest.mark.recipe
def test_every_failure_is_named_and_none_when_it_is_mended(ran, workspace):
    read, (one, both) = ran
    for cell in (one, both):
        tensors = load_file(cell.folder / "model.safetensors")
        logits = {k: torch.linspace(0, 5, len(v)) for k, v in tensors.items() if "logits" in k}
        save_file(tensors | logits, cell.folder / "model.safetensors")
        log = "step,name,value\n"
        (cell.folder / "log.csv").write_text(log)
        for split in ("dev", "test"):
            for task in ("asr", "emotion"):
                predicted(cell, task, split, str)
    assert diagnose(read, [one, both]) == []

    tensors = load_file(one.folder / "model.safetensors")
    name = "fusions.asr.interface.logits"
    save_file(tensors | {name: 0.01 * tensors[name]}, one.folder / "model.safetensors")
    ((kind, line),) = diagnose(read, [one, both])
    assert kind == "layer weights still uniform"
    assert line.startswith("one, seed 7, asr: layer weights are still uniform, entropy 100.0 %")
    assert "raise training.layer_rate from 1" in line
    save_file(tensors, one.folder / "model.safetensors")

    scores = [f"{step},dev/asr/wer,{wer}" for step, wer in ((1, 0.9), (2, 0.8), (3, 0.7))]
    (one.folder / "log.csv").write_text("\n".join(["step,name,value", *scores]) + "\n")
    ((kind, line),) = diagnose(read, [one, both])
    assert kind == "training that ended early"
    assert "asr: development WER went from 80.0 to 70.0 % at the last look" in line
    (one.folder / "log.csv").write_text(
        "\n".join(["step,name,value", *scores, "4,dev/asr/wer,0.72"])
    )
    assert diagnose(read, [one, both]) == []

    predicted(one, "asr", "dev", lambda _: "")
    ((kind, line),) = diagnose(read, [one, both])
    assert kind == "clips without a text"
    assert "asr: 100 % of the development clips get no text, CTC stays at its blanks" in line
    predicted(one, "asr", "dev", str)

    predicted(both, "asr", "test", lambda text: f"{text} more")
    ((kind, line),) = diagnose(read, [one, both])
    assert kind == "fusion worse than one of its encoders"
    assert line.startswith("both, asr: WER is worse than 'one' alone, by 50.0 points; try")
    another = {"ssl": one.recipe.upstreams["ssl"].model_copy(update={"kind": "another"})}
    other = replace(one, recipe=one.recipe.model_copy(update={"upstreams": another}))
    assert not any("is worse than" in f.line for f in _worse(read, [other, both], "test"))
    assert line in write_report(read, [one, both], workspace / "out").read_text().replace(
        "&#39;", "'"
    )


@pytest.mark.recipe
def test_frozen_weights_that_moved_are_named_in_the_report(ran, workspace):
    """Of both runs one encoder is another now; the random one needs its configuration alone."""
    read, done = ran
    whole = write_report(read, done, workspace / "out").read_text()
    assert "frozen weights" not in whole
    path = workspace / "encoder" / "model.safetensors"
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, {"format": "pt"})
    (line,) = (f.line for f in diagnose(read, done) if f.kind == "frozen weights that moved")
    assert "2 of 2 runs were made with another upstream 'ssl' than is there now" in line
    assert "(weights_sha256 differs); put it back, or train all into another folder" in line
    page = write_report(read, done, workspace / "out").read_text()
    assert "frozen weights that moved: 2 of 2" in page
    assert page.count("<svg") < whole.count("<svg")  # no layers of an encoder that is not theirs
