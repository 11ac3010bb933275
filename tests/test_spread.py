"""Mean and deviation over folds, from predictions that are written by hand."""

import pytest
import yaml

from speechfuse.checkpoint import Run
from speechfuse.experiments.spread import spread_tables
from speechfuse.experiments.sweep import cells, read_sweep


@pytest.fixture
def sweep(workspace, tone_recipe):
    """Two folds of emotions, two seeds; words are not folded, so that a row of them has one run."""
    tasks = {name: tone_recipe["tasks"][name] for name in ("asr", "emotion")}
    tasks["asr"]["corpus"] = str(workspace / "words.jsonl")
    data = {
        "name": "tones",
        "recipe": {**tone_recipe, "tasks": tasks},
        "rows": {"all": {}, "words": {"leave_out": ["emotion"]}},
        "folds": {"task": "emotion", "test": 4, "dev": 1, "spread": True},
        "seeds": [1, 2],
    }
    path = workspace / "sweep.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def answered(cell, right):
    """Four emotions of which so many are right, and two words of which one is."""
    run = Run(cell.folder)
    (run.folder / "predictions").mkdir(parents=True)
    if "emotion" in cell.recipe.tasks:
        found = ["x"] * right + ["y"] * (4 - right)
        rows = [
            {"id": f"{i}", "speaker": f"{i}", "reference": "x", "prediction": one}
            for i, one in enumerate(found)
        ]
        run.save_table("test", "emotion", rows)
    row = {"id": "a", "speaker": "a", "reference": "one two", "prediction": "one"}
    run.save_table("test", "asr", [row])


def test_seeds_are_averaged_in_each_fold(sweep, workspace):
    """Folds of (25 + 75) / 2 and 100 percent: 75, and sqrt(2 * 25^2) around it."""
    read = read_sweep(sweep)
    done = cells(read, workspace / "out")
    for cell in done:
        answered(cell, {(0, 1): 1, (0, 2): 3}.get((cell.fold, cell.seed), 4))
    ((title, columns, rows),) = spread_tables(read, done)
    assert title.startswith("tones\n%, mean and standard deviation over folds")
    found = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert found["all"]["emotion: accuracy (WA)"] == "75.0 \u00b1 35.4"
    assert found["all"]["asr: WER"] == "50.0 \u00b1 0.0"
    assert found["words"]["asr: WER"] == "50.0"
    assert found["words"]["emotion: accuracy (WA)"] == "-"
    assert spread_tables(read_sweep(sweep, ["folds.spread=false"]), done) == []


def test_a_row_of_tasks_that_no_fold_changes_is_trained_once(sweep, workspace):
    found = cells(read_sweep(sweep), workspace / "out")
    places = {row: [(c.fold, c.seed) for c in found if c.row == row] for row in ("all", "words")}
    assert places == {"all": [(0, 1), (0, 2), (1, 1), (1, 2)], "words": [(0, 1), (0, 2)]}
