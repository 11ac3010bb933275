"""Sweeps: rows, conditions, folds and seeds; the table and the report."""

import json

import pytest
import yaml

from speechfuse.errors import RecipeError
from speechfuse.experiments.report import result_tables, write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import cells, read_sweep, summarise


@pytest.fixture
def sweep(workspace, tone_recipe):
    """Two rows, a choice between them, two conditions and three folds on the emotion task."""
    recipe = {**tone_recipe, "tasks": {"emotion": tone_recipe["tasks"]["emotion"]}}
    recipe["upstreams"]["coarse"] = {"kind": "filterbank", "num_mels": 8, "frame_rate": 50}
    recipe["training"] = {"steps": 4, "batch_seconds": 4, "learning_rate": 1e-2}
    data = {
        "name": "tones",
        "recipe": recipe,
        "rows": {
            "fine": {"use": ["mel"]},
            "both": {"use": ["mel", "coarse"], "fusion": {"order": "layers_first"}},
            "best": {"best_of": ["fine", "both"]},
        },
        "conditions": {"all": {}, "one speaker": {"folds": {"train": 1}}},
        "folds": {"task": "emotion", "test": 2, "dev": 1},
        "seeds": [1, 2],
        "baseline": "best",
    }
    path = workspace / "sweep.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_every_speaker_is_tested_once_and_never_trained_on(sweep, workspace):
    found = cells(read_sweep(sweep), workspace / "out")
    assert len(found) == 2 * 2 * 4 * 2
    for condition in ("all", "one speaker"):
        mine = [c for c in found if (c.row, c.condition, c.seed) == ("fine", condition, 1)]
        tested = [s for c in mine for s in c.recipe.tasks["emotion"].split.test_speakers]
        assert sorted(tested) == [f"s{i}" for i in range(8)]
        for cell in mine:
            split = cell.recipe.tasks["emotion"].split
            groups = [split.train_speakers, split.dev_speakers, split.test_speakers]
            assert len({s for g in groups for s in g}) == sum(map(len, groups))
            assert len(split.train_speakers) == (1 if condition == "one speaker" else 5)
    assert len({c.folder for c in found}) == len(found)
    assert found[0].recipe.upstreams.keys() == {"mel"}


def test_a_sweep_runs_resumes_and_reports(sweep, workspace):
    read = read_sweep(sweep)
    done = run_sweep(read, workspace / "out")
    lines = (workspace / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(done) == 32
    assert set(json.loads(lines[0])) == {"row", "condition", "fold", "seed", "folder", "test"}
    run_sweep(read, workspace / "out")
    assert len((workspace / "out" / "results.jsonl").read_text().splitlines()) == 32
    results = list(summarise(read, done))
    assert len(results) == 3 * 2 * 2
    for result in results:
        assert result.value.speakers == 8
        assert result.seeds == 2
        assert (result.difference is None) == (result.row == "best")
    tables = result_tables(read, done)
    assert [t[0].split("\n")[0] for t in tables] == ["tones: all", "tones: one speaker"]
    assert "8 test speakers, 2 seeds" in tables[0][0]
    page = write_report(read, done, workspace / "out").read_text()
    assert page.count("<table>") == 3
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")  # fmt: skip  # noqa: E501
    assert "src=" not in page


def test_the_choice_is_made_on_development_data(sweep, workspace):
    """Test predictions play no part: spoil them, and the same rows are chosen."""
    from speechfuse.checkpoint import Run
    from speechfuse.experiments.sweep import _Tables

    read = read_sweep(sweep, ["conditions={all: {}}"])
    done = run_sweep(read, workspace / "out")
    tables = _Tables(done, "test")
    from speechfuse import build

    task = build.build_task("emotion", done[0].recipe.tasks["emotion"])
    for fold in range(4):
        options = [c for c in done if (c.fold, c.seed) == (fold, 1)]
        chosen = tables._best(options, "emotion", task)
        scores = {
            c.row: Run(c.folder).metrics()["dev"]["emotion"][task.primary]["value"] for c in options
        }
        assert scores[chosen.row] == max(scores.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baseline=wrost", "no row 'wrost'"),
        ("rows.both.use=[mell]", "row 'both' uses 'mell'; known: coarse, mel"),
        ("rows.fine.fusion={interface: {kind: hcnov}}", "row 'fine': .*Did you mean 'hconv'"),
        ("seeds=[]", "seeds"),
        ("folds.tset=3", "folds.tset"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(sweep, workspace, override, message):
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        cells(read_sweep(sweep, [override]), workspace / "out")
    assert not (workspace / "out").exists()
