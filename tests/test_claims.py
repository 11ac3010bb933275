"""Claims: better at one task, and at no other worse by the margin."""

import pytest
import yaml

from speechfuse.errors import RecipeError
from speechfuse.experiments.claims import Compared, claim_tables, verdict
from speechfuse.experiments.report import write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import cells, read_sweep
from speechfuse.types import Metric


def gain(task, low, high, other="oracle"):
    return Compared(task, "m", other, Metric((low + high) / 2, low, high, 20), (3, 3))


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([("asr", 0.01, 0.05), ("ser", -0.005, 0.02)], "holds: asr better"),
        ([("asr", 0.01, 0.05), ("ser", 0.01, 0.02)], "holds: asr and ser better"),
        ([("asr", 0.01, 0.05), ("ser", -0.02, 0.02)], "not shown: asr better, ser may be worse"),
        ([("asr", -0.01, 0.05), ("ser", -0.02, 0.02)], "not shown: no task is better"),
        ([("asr", 0.01, 0.05), ("ser", -0.05, -0.02)], "does not hold: ser worse by more than 1"),
        ([("asr", -0.009, 0.0), ("ser", 0.0, 0.0)], "not shown: no task is better"),
    ],
)
def test_a_verdict_follows_the_intervals(gains, said):
    assert verdict([gain(*one) for one in gains], 0.01).startswith(said)


def test_a_task_must_be_better_than_every_row_that_has_it():
    two = [gain("asr", 0.01, 0.05, "a"), gain("asr", -0.01, 0.05, "b")]
    assert verdict(two, 0.01) == "not shown: no task is better than all of them"


@pytest.fixture
def sweep(workspace, tone_recipe):
    tasks = {name: tone_recipe["tasks"][name] for name in ("asr", "emotion")}
    data = {
        "name": "tones",
        "recipe": {**tone_recipe, "tasks": tasks},
        "rows": {
            "both": {},
            "asr alone": {"leave_out": ["emotion"]},
            "emotion alone": {"leave_out": ["asr"], "training": {"steps": 1}},
        },
        "seeds": [1, 2],
        "claims": {"both help": {"row": "both", "over": ["asr alone", "emotion alone"]}},
    }
    path = workspace / "sweep.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_a_claim_is_compared_with_oracles_of_one_task_each(sweep, workspace):
    read = read_sweep(sweep)
    assert claim_tables(read, []) == []
    done = run_sweep(read, workspace / "out")
    ((title, columns, rows),) = claim_tables(read, done)
    assert title.startswith("Claims\n")
    assert columns[0] == "claim"
    assert [row[:3] for row in rows] == [
        ["both help", "asr alone", "asr: WER"],
        ["", "emotion alone", "emotion: balanced accuracy (UA)"],
    ]
    assert rows[0][-1].split(":")[0] in ("holds", "not shown", "does not hold")
    assert rows[1][-1] == ""
    assert rows[0][4].endswith(" of 2")
    report = write_report(read, done, workspace / "out").read_text()
    assert "both help" in report
    one = [cell for cell in cells(read, workspace / "out") if cell.row != "asr alone"]
    assert claim_tables(read, one) == []  # a row that has not run


def test_fewer_errors_and_more_right_answers_are_better(sweep, workspace):
    read = read_sweep(sweep, ["seeds=[1]"])
    done = run_sweep(read, workspace / "out")
    for cell in done:
        for task in cell.recipe.tasks:
            path = cell.folder / "predictions" / f"test_{task}.tsv"
            head, *lines = path.read_text().splitlines()
            columns = head.split("\t")
            reference, prediction = columns.index("reference"), columns.index("prediction")
            rows = [line.split("\t") for line in lines]
            for row in rows:
                row[prediction] = row[reference] if cell.row == "both" else rows[0][reference]
            path.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")
    ((_, _, rows),) = claim_tables(read, done)
    wer, ua = (float(row[3].split()[0]) for row in rows)
    assert wer > 20
    assert ua == 50
    assert [row[4] for row in rows] == ["1 of 1", "1 of 1"]
    assert rows[0][-1] == "holds: asr and emotion better"


def test_a_claim_of_no_row_is_refused(sweep):
    with pytest.raises(RecipeError, match="claim 'both help': no row 'booth'"):
        read_sweep(sweep, ["claims.both help.row=booth"])
