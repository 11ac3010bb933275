"""Further rows of the quickstart; the shipped ones stay as they are."""

import pytest
import yaml

from speechfuse import build, catalog
from speechfuse.errors import RecipeError
from speechfuse.experiments import quickstart
from speechfuse.experiments.quickstart import quickstart_sweep
from speechfuse.experiments.report import result_tables, write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import cells

HAVE_ROWS = {"weighted_sum", "hconv"}


def test_without_interfaces_the_rows_are_the_shipped_ones():
    shipped = yaml.safe_load(quickstart.resource("recipes", "quickstart.yaml").read_text())
    assert [*quickstart_sweep().rows] == [*shipped["rows"]]
    assert [*quickstart_sweep(2, "weighted_sum").rows] == [*shipped["rows"]]
    assert quickstart_sweep(2).seeds == (7, 8)
    fused = [row for row in shipped["rows"].values() if len(row["use"]) > 1]
    assert (len(shipped["rows"]), len(fused)) == (7, 3)  # as its help and the tutorial say


def test_all_adds_a_row_that_can_be_built_for_every_interface(tmp_path):
    read = quickstart_sweep(interfaces="all")
    new = {row: row.removeprefix("both, ") for row in [*read.rows][len(quickstart_sweep().rows) :]}
    assert {*new.values()} == {*catalog.ROLES["interface"]} - HAVE_ROWS
    for cell in cells(read, tmp_path, [*new]):
        fusion, tasks = cell.recipe.fusion, cell.recipe.tasks
        assert [*cell.recipe.upstreams] == ["ssl", "whisper"]
        assert (fusion.interface.kind, fusion.order) == (new[cell.row], "layers_first")
        assert fusion.normalize == "layer_norm"
        pooled = catalog.find("interface", fusion.interface.kind).pools
        assert [*tasks] == ["asr", "emotion", "verification"][pooled:]
        assert [*cell.recipe.training.interleave] == [*tasks]
        assert (cell.recipe.training.steps, cell.recipe.training.learning_rate) == (800, 4e-3)
        built = build.build_fusion(cell.recipe, build.stack_specs(cell.recipe), [*tasks])
        for name, entry in tasks.items():
            head = build.build_head(
                entry,
                built.out_dim,
                {"num_tokens": 5, "num_classes": 4, "symbols": [*"abcd"]},
            )
            build.check_frames(cell.recipe, name, built, head)


def test_interfaces_may_be_named_and_of_ones_own(monkeypatch):
    shipped = len(quickstart_sweep().rows)
    monkeypatch.chdir("examples")
    read = quickstart_sweep(interfaces="mhfa, mean_of_layers:MeanOfLayers,mhfa")
    assert [*read.rows][shipped:] == ["both, mhfa", "both, mean_of_layers:MeanOfLayers"]
    with pytest.raises(RecipeError, match=r"unknown interface kind 'mfha'.*Did you mean 'mhfa'"):
        quickstart_sweep(interfaces="frame_gating,mfha")


@pytest.mark.recipe
def test_new_rows_run_and_a_task_left_out_is_a_dash(workspace, tone_recipe, monkeypatch):
    tone_recipe["upstreams"]["coarse"] = {"kind": "filterbank", "num_mels": 8, "frame_rate": 50}
    tone_recipe["training"]["steps"] = 2
    tone_recipe["training"]["interleave"] = {"asr": 2, "emotion": 1, "verification": 1}
    row = {"use": ["mel", "coarse"], "fusion": {"order": "layers_first"}}
    data = {"name": "tones", "recipe": tone_recipe, "rows": {quickstart.BOTH: row}}
    path = workspace / "sweep.yaml"
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setattr(quickstart, "resource", lambda *_: path)
    read = quickstart_sweep(interfaces="mhfa,frame_gating")
    done = run_sweep(read, workspace / "out")
    ((_, columns, rows),) = result_tables(read, done)
    by_row = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    dashes = {name: [c for c, cell in row.items() if cell == "-"] for name, row in by_row.items()}
    assert dashes == {quickstart.BOTH: [], "both, mhfa": ["WER", "CER"], "both, frame_gating": []}
    assert "<td>-</td>" in write_report(read, done, workspace / "out").read_text()
