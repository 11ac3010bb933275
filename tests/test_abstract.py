"""Sentences of numbers that are made up for it."""

import pytest

from speechfuse.build import build_task, read_recipe
from speechfuse.experiments.abstract import abstract
from speechfuse.experiments.sweep import Result, SweepFile
from speechfuse.types import Metric

CLAIMS = [
    (
        "Claims\n...",
        [],
        [
            [
                "HConv helps",
                "mel",
                "emotion: accuracy (WA)",
                "+3",
                "2 of 3",
                "holds: emotion better",
            ],
            ["", "sum", "emotion: accuracy (WA)", "+1", "2 of 3", ""],
            [
                "sums help",
                "mel",
                "asr: WER",
                "-3",
                "0 of 3",
                "does not hold: asr worse by more than 1",
            ],
            ["one is enough", "mel", "asr: WER", "0", "1 of 3", "not shown: no task is better"],
        ],
    )
]


@pytest.fixture
def built(tone_recipe):
    recipe = read_recipe(tone_recipe)
    return {name: build_task(name, recipe.tasks[name]) for name in ("asr", "emotion")}


@pytest.fixture
def said(built):
    """What is said of rows by task, as (value, difference to the baseline) in percent."""

    def say(values, *, baseline="mel", claims=None, failures=None, folds=1, mean=""):
        rows = {row: {} for of_rows in values.values() for _, row in of_rows} or {"mel": {}}
        sweep = SweepFile.model_validate(
            {
                "name": "x",
                "recipe": {},
                "rows": rows,
                "baseline": baseline,
                "claims": {"HConv helps": {"row": "hconv", "over": ["mel"]}} if claims else {},
            }
        )
        tasks = {name: built[name] for name in values}
        results = []
        for task, of_rows in values.items():
            for (condition, row), (value, difference) in of_rows.items():
                interval = difference and Metric(*(one / 100 for one in difference), 24)
                for metric in {tasks[task].primary, "other"}:
                    own = Metric(value / 100, value / 100 - 0.02, value / 100 + 0.02, 24)
                    own = own if metric != "other" else Metric(0.0, 0.0, 0.0, 24)
                    results.append(Result(row, condition, task, metric, own, interval, 3))
        averaged = [r for r in results if r.condition == mean] if mean else []
        shown = [r for r in results if r not in averaged]
        return abstract(sweep, tasks, shown, averaged, folds, claims or [], failures or {})

    return say


def test_a_best_row_that_differs_is_told_with_its_interval(said):
    rows = {
        ("", "mel"): (70, None),
        ("", "sum"): (72, (2, -1, 5)),
        ("", "hconv"): (78, (8, 3, 12)),
    }
    compared, best, failures = said({"emotion": rows}, folds=4)
    assert compared == (
        "3 rows were compared over 4 folds and 3 seeds on 24 test speakers by balanced accuracy "
        "(UA) of emotion."
    )
    assert best == (
        "'hconv' is best with 78.0 % [76.0, 80.0], "
        "+8.0 [+3.0, +12.0] points better than 'mel', told apart from zero by the paired interval "
        "(which does not count that it was chosen among 3 rows)."
    )
    assert failures == "None of the known failures was found."


def test_of_errors_less_is_better_and_what_is_not_told_apart_is_said(said):
    rows = {("", "mel"): (30, None), ("", "sum"): (29, (-1, -4, 2)), ("", "hconv"): (33, (3, 1, 5))}
    _, best, _ = said({"asr": rows})
    assert best == (
        "'sum' is best with 29.0 % [27.0, 31.0], +1.0 [-2.0, +4.0] points better "
        "than 'mel', not told apart from zero by the paired interval."
    )


def test_a_baseline_that_is_best_is_told_from_the_next_row(said):
    rows = {("", "mel"): (20, None), ("", "sum"): (24, (4, 1, 7))}
    _, best, _ = said({"asr": rows})
    assert (
        "'mel' is best with 20.0 % [18.0, 22.0]; 'sum' comes next, +4.0 [+1.0, +7.0] points" in best
    )
    assert best.endswith("points worse, told apart from zero by the paired interval.")


def test_without_a_baseline_no_difference_is_spoken_of(said):
    rows = {("", "mel"): (70, None), ("", "sum"): (72, None)}
    _, best, _ = said({"emotion": rows}, baseline=None)
    assert best.endswith("'sum' is best with 72.0 % [70.0, 74.0].")


def test_one_row_is_compared_with_nothing(said):
    lines = said({"emotion": {("", "mel"): (70, None)}})
    assert lines == [
        "One row, 'mel', was run over 3 seeds on 24 test speakers, which is compared with nothing: "
        "70.0 % [68.0, 72.0] balanced accuracy (UA) of emotion.",
        "None of the known failures was found.",
    ]


def test_of_no_results_nothing_is_said(said):
    assert said({}) == []


def test_tasks_and_conditions_are_counted(said):
    emotion = {
        (condition, row): (value, difference)
        for condition, real in (("a", 3), ("b", -1))
        for row, value, difference in (("mel", 70, None), ("sum", 75, (5, real, 9)))
    }
    asr = {(condition, row): (30, None) for condition in "ab" for row in ("mel", "sum")}
    compared, best, second, _ = said({"emotion": emotion, "asr": asr})
    assert "2 rows were compared over 2 conditions and 3 seeds on" in compared
    assert compared.endswith("on 24 test speakers in 2 tasks.")
    assert "of emotion, best of 2 conditions is 'sum' in 2, in 1 of 2 told apart from" in best
    assert second.startswith("By WER of asr, best of 2 conditions is 'mel' in 2.")


def test_where_conditions_are_averaged_the_average_says_which_row_is_best(said):
    mean = "mean over a, b"
    rows = {("a", "mel"): (70, None), ("b", "mel"): (70, None), (mean, "mel"): (70, None)}
    rows |= {("a", "sum"): (60, None), ("b", "sum"): (81, None), (mean, "sum"): (70.5, (0.5, 0, 1))}
    _, best, _ = said({"emotion": rows}, mean=mean)
    assert best.startswith("By the mean over a, b, 'sum' is best with 70.5 % [68.5, 72.5], +0.5")
    _, best, *_ = said({"emotion": rows, "asr": {}}, mean=mean)
    assert best.startswith("By balanced accuracy (UA) of emotion, the mean over a, b, 'sum' is")


def test_claims_and_failures_are_counted_by_name(said):
    rows = {("", "mel"): (70, None), ("", "hconv"): (78, (8, 3, 12))}
    lines = said({"emotion": rows}, claims=CLAIMS, failures={"uniform alpha": 2})
    assert lines[2:] == [
        "Of 3 claims 1 holds: 'HConv helps'; 1 does not hold: 'sums help'; 1 is not shown: 'one is "
        "enough'.",
        "Known failures that were found, each with a remedy below: uniform alpha (2).",
    ]
    unfinished = said({"emotion": rows}, claims=[("Claims\n...", [], [])])
    assert unfinished[2].startswith("No claim could be looked at")
