"""Sweeps: rows, conditions, folds and seeds; the table and the report."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from speechfuse import build
from speechfuse.analyse import LayerUse
from speechfuse.errors import DataError, RecipeError, RunError
from speechfuse.experiments import report
from speechfuse.experiments import sweep as sweeping
from speechfuse.experiments.averages import averages
from speechfuse.experiments.differences import difference_figures
from speechfuse.experiments.report import result_tables, write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import Folds, SweepFile, _best, cells, read_sweep, summarise
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks
from speechfuse.upstreams.huggingface import HuggingFace


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


def test_folds_may_be_groups_of_speakers(sweep, workspace, tiny_corpus):
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(tiny_corpus.parent / row["audio"])
        row["session"] = "ABCD"[int(row["speaker"][1]) // 2]
    manifest = workspace / "sessions.jsonl"

    def found(*overrides):
        manifest.write_text("\n".join(json.dumps(row) for row in rows))
        corpus = f"recipe.tasks.emotion.corpus={manifest}"
        by = "folds={task: emotion, by: session, test: 1, dev: 0}"
        read = read_sweep(sweep, ["conditions={all: {}}", "seeds=[1]", corpus, by, *overrides])
        return [c.recipe.tasks["emotion"].split for c in cells(read, workspace / "out", ["fine"])]

    splits = found()
    assert [s.test_speakers for s in splits] == [(f"s{i}", f"s{i + 1}") for i in (0, 2, 4, 6)]
    assert all(s.dev_speakers == () and len(s.train_speakers) == 6 for s in splits)
    first = found("folds.dev=1", "folds.train=1")[0]
    assert (first.dev_speakers, first.train_speakers) == (("s2", "s3"), ("s4", "s5"))
    with pytest.raises(RecipeError, match="4 session groups in groups of 3 leave 1 untested"):
        found("folds.test=3")
    with pytest.raises(RecipeError, match=r"folds\.by: utterance s0-0 of sessions has no 'room'"):
        found("folds.by=room")
    rows[0]["session"] = "B"
    with pytest.raises(RecipeError, match="speaker 's0' has session 'B' and 'A', so a fold"):
        found()


def test_published_numbers_stand_beside_ours(sweep, workspace):
    quick = ["conditions={all: {}, b: {}}", "seeds=[1]", "folds=null", "recipe.training.steps=1"]
    published = "rows.fine.published={emotion: {accuracy: {all: 71.5}}}"
    read = read_sweep(sweep, [*quick, published])
    done = run_sweep(read, workspace / "out")
    (_, columns, rows), (_, others, _) = result_tables(read, done)
    place = columns.index("published")
    assert columns[place - 1] == "accuracy (WA)"
    assert {row[0]: row[place] for row in rows} == {"fine": "71.5", "both": "", "best": ""}
    assert "published" not in others


@pytest.mark.recipe
def test_a_row_may_be_compared_with_another_than_the_baseline(sweep, workspace):
    """In the table and in the picture, which has better on the right and only what differs."""
    quick = ["conditions={all: {}}", "seeds=[1]", "folds=null", "recipe.training.steps=2"]
    read = read_sweep(sweep, [*quick, "baseline=best", "rows.both.minus=fine"])
    done = run_sweep(read, workspace / "out")
    found = list(summarise(read, done))
    scores = {r.row: r.value.value for r in found if r.metric == "accuracy"}
    differences = {r.row: r.difference for r in found if r.metric == "accuracy"}
    assert differences["best"] is None
    for row, other in (("both", "fine"), ("fine", "best")):
        assert differences[row].value == pytest.approx(scores[row] - scores[other])
    ((title, _, rows),) = result_tables(read, done, results=found)
    assert "third line: minus 'best' or the row that is named, paired" in title
    assert [row[0] for row in rows] == ["fine", "both\nminus 'fine'", "best"]
    task = build.build_task("emotion", done[0].recipe.tasks["emotion"])
    ((condition, figure),) = difference_figures(read, {"emotion": task}, found)
    (axis,) = figure.axes
    assert condition == "all"
    assert [text.get_text() for text in axis.get_yticklabels()] == ["fine", "both\nminus fine"]
    drawn = [line.get_xdata()[0] for line in axis.get_lines() if line.get_marker() == "o"]
    wanted = [r.difference.value for r in found if r.metric == task.primary and r.difference]
    assert drawn == pytest.approx([100 * value for value in wanted])


@pytest.mark.recipe
def test_an_average_over_groups_of_conditions_is_one_table_more(sweep, workspace):
    """Of the rows that have all of them; the first group counts once, and the table is reported."""
    quick = [
        "conditions={a: {}, b: {folds: {train: 1}}, c: {folds: {train: 2}}}",
        "folds.test=4",
        "recipe.training.steps=2",
        "rows.both.gain_over=[fine]",
        "rows.fine.published_average={emotion: {accuracy: 71.5}}",
        "average_conditions={first: [a, b], second: [c]}",
    ]
    read = read_sweep(sweep, quick)
    done = run_sweep(read, workspace / "out")
    each = {(r.row, r.condition): r for r in summarise(read, done) if r.metric == "accuracy"}
    found = {r.row: r for r in averages(read, done) if r.metric == "accuracy"}
    for row in ("fine", "both", "best"):
        a, b, c = (each[row, condition].value.value for condition in "abc")
        assert found[row].value.value == pytest.approx(((a + b) / 2 + c) / 2)
        assert (found[row].seeds, found[row].value.speakers) == (2, 8)
    assert found["best"].difference is None
    gap = found["fine"].value.value - found["best"].value.value
    assert found["fine"].difference.value == pytest.approx(gap)
    *others, (title, columns, rows) = result_tables(read, done)
    assert len(others) == 3
    assert title.startswith(
        "tones: mean over first, second\n% with 95 % interval over speakers and seeds; 8 test"
    )
    assert columns[:3] == ["", "accuracy (WA)", "published"]
    assert {row[0]: row[2] for row in rows} == {"fine": "71.5", "both": "", "best": ""}
    assert (
        "<h2>tones: mean over first, second</h2>"
        in write_report(read, done, workspace / "out").read_text()
    )
    value, alone = (found[row].value.value for row in ("both", "fine"))
    place = columns.index("relative gain")
    gains = {row[0]: row[place].split("\n")[0] for row in rows}
    assert gains == {"fine": "", "best": "", "both": f"{100 * (value - alone) / alone:+.1f}"}
    part = [cell for cell in done if (cell.row, cell.condition) != ("both", "c")]
    assert {r.row for r in averages(read, part)} == {"fine"}


@pytest.mark.recipe
def test_a_sweep_runs_resumes_and_reports(sweep, workspace):
    read = read_sweep(sweep, ["folds.test=4"])
    done = run_sweep(read, workspace / "out")
    lines = (workspace / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(done) == 16
    assert set(json.loads(lines[0])) == {"row", "condition", "fold", "seed", "folder", "test"}
    run_sweep(read, workspace / "out")
    assert len((workspace / "out" / "results.jsonl").read_text().splitlines()) == 16
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
    titled = read.model_copy(update={"title": "a < b"})
    assert "<title>a &lt; b</title>" in write_report(titled, done, workspace / "out").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_folder_of_another_run_is_refused_before_anything_is_computed(sweep, workspace, jobs):
    quick = ["conditions={all: {}}", "seeds=[1]", "folds=null", "recipe.training.steps=1"]
    run_sweep(read_sweep(sweep, quick), workspace / "out", rows=["both"])
    longer = read_sweep(sweep, [*quick, "recipe.training.steps=2", "recipe.store.folder=new"])
    with pytest.raises(RunError, match=r"another recipe \(differs in training\.steps\)"):
        run_sweep(longer, workspace / "out", jobs=jobs)
    assert not (workspace / "new").exists()
    assert not (workspace / "out" / "fine").exists()


@pytest.mark.recipe
def test_jobs_give_the_same_runs(sweep, workspace):
    read = read_sweep(sweep, ["conditions={all: {}}", "seeds=[1]"])
    alone = run_sweep(read, workspace / "alone", rows=["fine"])
    said = []
    together = run_sweep(
        read, workspace / "together", rows=["fine"], jobs=2, progress=lambda *m: said.append(m)
    )
    for one, other in zip(alone, together, strict=True):
        a, b = (load_file(cell.folder / "model.safetensors") for cell in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())
    assert len((workspace / "together" / "results.jsonl").read_text().splitlines()) == 4
    assert ("runs", 4, 4) in said
    assert any(what == "fine" for what, _, _ in said)


@pytest.mark.recipe
def test_rows_at_once_share_a_budget_and_rows_in_turn_each_have_it(sweep, workspace):
    """Or one row's layers would be deleted for another's while they are read."""
    quick = ["conditions={all: {}}", "seeds=[1]", "folds=null", "baseline=fine"]
    quick += ["recipe.training.steps=1", "rows.other={use: [coarse]}"]
    read = read_sweep(sweep, quick)
    run_sweep(read, workspace / "out", rows=["fine", "other"])
    sizes = [path.stat().st_size / 1e9 for path in workspace.glob("stores/*/*.safetensors")]
    assert len(sizes) == 2
    tight = read_sweep(
        sweep, [*quick, f"recipe.store={{folder: tight, budget_gb: {0.9 * sum(sizes)}}}"]
    )
    with pytest.raises(DataError, match=r"rows at once: .*budget_gb.*; or --jobs 1"):
        run_sweep(tight, workspace / "tight-out", rows=["fine", "other"], jobs=2)
    assert not [*workspace.glob("tight/*/*.safetensors")]
    assert len(run_sweep(tight, workspace / "tight-out", rows=["fine", "other"])) == 2
    assert len([*workspace.glob("tight/*/*.safetensors")]) == 1
    enough = read_sweep(
        sweep, [*quick, f"recipe.store={{folder: enough, budget_gb: {1.1 * sum(sizes)}}}"]
    )
    assert len(run_sweep(enough, workspace / "enough-out", rows=["fine", "other"], jobs=2)) == 2


@pytest.mark.parametrize(
    ("jobs", "whole"), [(1, False), (1, True), pytest.param(2, True, marks=pytest.mark.recipe)]
)
def test_an_encoder_runs_once_for_all_layers_that_rows_read(
    sweep, workspace, encoder, monkeypatch, jobs, whole
):
    hubert, clips = {"kind": "huggingface", "source": str(encoder("hubert"))}, []

    def counted(self, wav, stream=HuggingFace.stream):
        clips.extend(wav.lengths.tolist())
        return stream(self, wav)

    monkeypatch.setattr(HuggingFace, "stream", counted)
    read = read_sweep(sweep, ["conditions={all: {}}", "seeds=[1]", "folds=null", "baseline=null"])
    recipe = read.recipe | {"upstreams": {"hubert": hubert}}
    recipe["training"] = recipe["training"] | {"steps": 1}
    rows = {f"layer {n}": {"upstreams": {"hubert": {"layers": [n]}}} for n in (2, 0)}
    if whole:
        rows["all of them"] = {}
    read = SweepFile.model_validate(read.model_dump() | {"recipe": recipe, "rows": rows})
    done = run_sweep(read, workspace / "out", jobs=jobs)
    kept = [cell.recipe.upstreams["hubert"].options["layers"] for cell in done]
    assert kept == [[2], [0], None][: len(rows)]
    once = {u.id for split in load_tasks(done[0].recipe)["emotion"].splits.values() for u in split}
    assert len(clips) == len(once) > 0


@pytest.mark.recipe
def test_the_choice_is_made_on_development_data(sweep, workspace):
    """Test predictions play no part: spoil them, and the same rows are chosen."""
    from speechfuse.checkpoint import Run

    read = read_sweep(sweep, ["conditions={all: {}}", "seeds=[1]"])
    done = run_sweep(read, workspace / "out")
    from speechfuse import build

    task = build.build_task("emotion", done[0].recipe.tasks["emotion"])
    for fold in range(4):
        options = [c for c in done if c.fold == fold]
        chosen = _best(options, {"emotion": task})
        scores = {
            c.row: Run(c.folder).metrics()["dev"]["emotion"][task.primary]["value"] for c in options
        }
        assert scores[chosen.row] == max(scores.values())


def test_a_choice_for_all_tasks_together_is_one_run(workspace):
    """Each task alone would choose another row; added up a third one is the best."""
    scores = {"a": (0.2, 0.5), "b": (0.5, 0.9), "c": (0.25, 0.8)}
    tasks = {
        "asr": SimpleNamespace(primary="wer", higher_is_better=False),
        "emotion": SimpleNamespace(primary="accuracy", higher_is_better=True),
    }
    found = []
    for row, (wer, right) in scores.items():
        folder = workspace / row
        folder.mkdir()
        rest = {"low": 0, "high": 1, "speakers": 2}
        dev = {
            "asr": {"wer": {"value": wer} | rest},
            "emotion": {"accuracy": {"value": right} | rest},
        }
        (folder / "metrics.json").write_text(json.dumps({"dev": dev, "test": {}}))
        found.append(SimpleNamespace(row=row, folder=folder))
    assert _best(found, {"asr": tasks["asr"]}).row == "a"
    assert _best(found, {"emotion": tasks["emotion"]}).row == "b"
    assert _best(found, tasks).row == "c"


def test_tables_choose_together_if_asked(sweep, workspace, monkeypatch):
    judged = []
    monkeypatch.setattr(sweeping, "_best", lambda cells, tasks: judged.append([*tasks]) or cells[0])
    quick = ["conditions={all: {}}", "seeds=[1]", "folds.test=4", "recipe.training.steps=1"]
    read = read_sweep(sweep, [*quick, "rows.best.together=true"])
    louder = {**read.recipe["tasks"]["emotion"], "kind": "classification", "label": "emotion"}
    tasks = {**read.recipe["tasks"], "loudness": louder}
    read = read.model_copy(update={"recipe": read.recipe | {"tasks": tasks}})
    done = run_sweep(read, workspace / "out")
    for row, asked in (("best", ["emotion", "loudness"]), ("fine", ["emotion"])):
        judged.clear()
        sweeping.Tables(done, "test").of_row(read, row, "all")
        assert judged[0] == asked


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baseline=wrost", "no row 'wrost'"),
        ("rows.both.use=[mell]", "row 'both' uses 'mell'; known: coarse, mel"),
        ("rows.fine.fusion={interface: {kind: hcnov}}", "row 'fine': .*Did you mean 'hconv'"),
        ("seeds=[]", "seeds"),
        (
            "folds.tset=3",
            "folds.tset: unknown setting; known: also, by, .* Did",
        ),
        ("conditions.one speaker.folds={trian: 1}", "'one speaker': folds.trian.* mean 'train'"),
        ("conditions.one speaker.folds.train=0", "'one speaker': folds.train: .*greater than 0"),
        ("conditions.one speaker.folds=3", "conditions.one speaker.folds: expected a mapping"),
        ("folds=null", "condition 'one speaker': changes folds that the sweep has not"),
        (
            "average_conditions={speakers: [al, one speaker]}",
            "average_conditions.speakers: no condition 'al'; .*mean 'all'.*average_conditions=null",
        ),
        ("rows.both.minus=fin", "row 'both': minus: no row 'fin'; .*mean 'fine'"),
        ("rows.both.gain_over=[fin]", "row 'both': gain_over: no row 'fin'; .*mean 'fine'"),
        ("average_conditions={speakers: []}", "average_conditions.speakers: .*at least 1 item"),
        ("folds.task=emotoin", "folds.task: no task 'emotoin'; .*Did you mean 'emotion'"),
        ("folds.also={emtion: {}}", "folds.also: no task 'emtion'; .*mean 'emotion'"),
        ("folds.also.emotion.tset=1", "folds.also.emotion.tset: unknown setting; known: dev, test"),
        ("folds.test=3", "8 speakers in groups of 3 leave 2 untested; choose one of 1, 2, 4"),
        ("conditions.one speaker.folds.train=6", "need more than the 8 of task 'emotion'"),
        ("baselin=best", "baselin: unknown setting; .*Did you mean 'baseline'"),
        ("rows.again={best_of: [fine, best]}", "row 'again': 'best' is itself a best_of"),
        ("rows.best.best_of=[fine, boht]", "row 'best': no row 'boht'; .*mean 'both'"),
        ("rows.best.best_of=[]", "rows.best.best_of"),
        ("rows.fine.leave_out=[emotoin]", "leave_out: no task 'emotoin'; .*mean 'emotion'"),
        ("rows.fine.together=true", "row 'fine': together: it chooses nothing; add best_of"),
        ("rows.best.leave_out=[emotion]", "row 'best': leave_out: a best_of has the tasks of"),
        ("rows.fine.leave_out=[emotion]", "row 'best': best_of: its rows leave out other tasks"),
        ("rows.FINE={}", "row 'fine', .* and row 'FINE', .* would both be written"),
        ("seeds=[1, 1]", "would both be written"),
        ("rows.!?={}", "no letter or digit"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(sweep, workspace, override, message):
    with pytest.raises(RecipeError, match=message.replace("=[", r"=\[")):
        cells(read_sweep(sweep, [override]), workspace / "out")
    assert not (workspace / "out").exists()


def test_a_recipe_is_no_sweep(workspace, tone_recipe):
    path = workspace / "recipe.yaml"
    path.write_text(yaml.safe_dump(tone_recipe))
    with pytest.raises(RecipeError) as error:
        read_sweep(path)
    assert str(error.value) == (
        f"{path}: is a recipe, of one run; use: speechfuse train {path} --out FOLDER"
    )


def test_tasks_on_other_corpora_turn_by_themselves(sweep, workspace, tiny_corpus, tone_recipe):
    """Four folds of emotion over eight speakers; two of recognition, which begin again."""
    other = workspace / "other.jsonl"
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row |= {"audio": str(tiny_corpus.parent / row["audio"]), "speaker": "t" + row["speaker"]}
    other.write_text("\n".join(json.dumps(row) for row in rows))
    task = merged(tone_recipe["tasks"]["asr"], {"corpus": str(other)})
    read = read_sweep(
        sweep, ["conditions={all: {}}", "seeds=[1]", "folds={task: emotion, test: 2}"]
    )
    tasks = {**read.recipe["tasks"], "asr": task}
    read = read.model_copy(update={"recipe": {**read.recipe, "tasks": tasks}})

    def tested(sweep, task):
        found = cells(sweep, workspace / "out", ["fine"])
        return [c.recipe.tasks[task].split.test_speakers for c in found]

    assert [len(speakers) for speakers in tested(read, "emotion")] == [2, 2, 2, 2]
    assert tested(read, "asr") == [None] * 4  # its own split
    also = Folds(task="emotion", test=2, also={"asr": {"test": 4}})
    turned = tested(read.model_copy(update={"folds": also}), "asr")
    assert turned[:2] == [("ts0", "ts1", "ts2", "ts3"), ("ts4", "ts5", "ts6", "ts7")]
    assert turned[2:] == turned[:2]


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ("{asr: 2, emotion: 1}", {"emotion": 1}),
        ("proportional", "proportional"),
        ("{temperature: 5}", {"temperature": 5}),
    ],
)
def test_a_task_that_a_row_leaves_out_is_not_in_its_folds(
    sweep, workspace, tone_recipe, asked, left
):
    asr = yaml.safe_dump({"asr": tone_recipe["tasks"]["asr"]}, default_flow_style=True, width=999)
    tasks = f"recipe.tasks.asr={asr.strip()[1:-1].removeprefix('asr: ')}"
    changes = [tasks, f"recipe.training.interleave={asked}"]
    rows = "rows={fine: {use: [mel], leave_out: [asr]}, both: {use: [mel]}}"
    found = cells(read_sweep(sweep, [*changes, rows, "baseline=null"]), workspace / "out")
    tasks = {c.row: [*c.recipe.tasks] for c in found}
    assert tasks == {"fine": ["emotion"], "both": ["emotion", "asr"]}
    kept = {c.row: c.recipe.model_dump()["training"]["interleave"] for c in found}
    assert kept["fine"] == left


def test_rows_may_be_named_in_any_script(sweep, workspace):
    read = read_sweep(sweep, ["rows={融合: {use: [mel]}, слой: {use: [coarse]}}", "baseline=null"])
    folders = {c.folder.relative_to(workspace).parts[0] for c in cells(read, workspace)}
    assert folders == {"融合", "слой"}


def test_a_choice_brings_its_candidates(sweep, workspace):
    read = read_sweep(sweep)
    rows = [c.row for c in cells(read, workspace / "out", ["best", "fine"])]
    assert list(dict.fromkeys(rows)) == ["fine", "both"]


def test_a_choice_without_all_of_its_candidates_is_left_out(sweep, workspace):
    quick = ["conditions={all: {}}", "seeds=[1]", "folds.test=4", "recipe.training.steps=1"]
    read = read_sweep(sweep, quick)
    done = run_sweep(read, workspace / "out", rows=["fine"])
    assert {result.row for result in summarise(read, done)} == {"fine"}


def test_layers_are_drawn_once_for_each_row_of_a_large_sweep(sweep, workspace, monkeypatch):
    looked = []

    def use(folder):
        looked.append(folder)
        return [LayerUse("emotion", "mel", [0.5, 0.5], None, None)]

    monkeypatch.setattr(report, "run_layer_use", use)
    monkeypatch.setattr(report.Run, "moved", lambda *_: {})  # none has run
    found = cells(read_sweep(sweep), workspace / "out")
    many = found + [replace(cell, seed=cell.seed + 10) for cell in found]
    assert len(many) > 40
    assert [row for row, _ in report._layer_figures(many)] == ["fine", "both"]
    assert len(looked) == 2


EXPERIMENTS = sorted((Path(__file__).parents[1] / "recipes" / "experiments").glob("*.yaml"))


@pytest.mark.recipe
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_compare_rows_over_three_seeds(path, tmp_path, monkeypatch):
    for variable in ("SPEECHFUSE_ENCODERS", "SPEECHFUSE_REAL"):
        monkeypatch.setenv(variable, str(tmp_path))
    read = read_sweep(path)
    assert read.name == path.stem
    assert read.baseline in read.rows
    assert len(read.seeds) == 3
    assert len(cells(read, tmp_path)) == 3 * len(read.rows) * len(read.conditions)


@pytest.mark.recipe
def test_columns_name_their_task_where_two_have_one_metric(sweep, workspace):
    read = read_sweep(sweep, ["recipe.training.steps=1", "seeds=[1]"])
    tasks = read.recipe["tasks"]
    loud = {**tasks["emotion"], "kind": "classification", "label": "emotion"}
    changed = read.recipe | {"tasks": {**tasks, "loudness": loud}}
    read = read.model_copy(update={"recipe": changed, "baseline": None})
    done = run_sweep(read, workspace / "out", rows=["fine"])
    (_, columns, _), *_ = result_tables(read, done)
    assert columns[1:5] == [
        f"{task}: {metric}"
        for task in ("emotion", "loudness")
        for metric in ("accuracy (WA)", "balanced accuracy (UA)")
    ]
