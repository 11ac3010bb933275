"""Tasks that learn from pseudo-labels: more training data, their origin shown, a fair test set."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.data.manifests import prepare
from speechfuse.data.teachers import Card, Seen, read_cards, write_cards
from speechfuse.errors import DataError
from speechfuse.evaluate import evaluate_again
from speechfuse.experiments.report import write_report
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import SweepFile, cells
from speechfuse.plan import plan_recipe
from speechfuse.pseudo.labelling import find_teacher, pseudo_label
from speechfuse.recipe import merged
from speechfuse.taskdata import find_corpus, load_tasks
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe  # seconds in all: run by make test


@pytest.fixture
def recipe(tone_recipe):
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    return tone_recipe


@pytest.fixture
def more(workspace, tiny_corpus):
    """Tones of other speakers, half of them with labels of a teacher that has seen `elsewhere`."""
    folder = workspace / "more"
    folder.mkdir()
    rows = []
    for line in tiny_corpus.read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "train" and row["speaker"] in ("s0", "s1"):
            shutil.copy(tiny_corpus.parent / row["audio"], folder / row["audio"])
            row |= {"id": "more-" + row["id"], "speaker": "new-" + row["speaker"]}
            if row["speaker"] == "new-s1":
                row |= {"emotion_origin": "t@1", "emotion_confidence": 0.95}
            rows.append(row)
    for row in rows:
        row.pop("split")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_cards(folder, [Card("t@1", "runs/t", 0.9, "wild", (Seen("elsewhere"),))])
    return folder


def rewritten(folder, change):
    """The manifest with each row changed, by a function that may leave one out."""
    path = folder / "manifest.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def tasks(recipe, **change):
    change = {"tasks": {"emotion": {"extra_training": ["more/manifest.jsonl"], **change}}}
    return load_tasks(read_recipe(merged(recipe, change)))


class TestExtraTraining:
    def test_it_is_learned_from_and_never_tested_on(self, recipe, more):
        (plain,) = load_tasks(read_recipe(recipe)).values()
        (data,) = tasks(recipe).values()
        assert len(data.splits["train"]) == len(plain.splits["train"]) + 16
        assert {u.id for u in data.splits["train"][-16:]} == {
            f"more-s{speaker}-{i}" for speaker in range(2) for i in range(8)
        }
        for split in ("dev", "test"):
            assert data.splits[split] == plain.splits[split]
            assert data.marks()[split] == plain.marks()[split]
        assert data.marks()["train"] != plain.marks()["train"]

    def test_what_is_its_own_to_test_is_left_out(self, recipe, more):
        rewritten(more, lambda row: row | {"split": "test" if "s0" in row["id"] else "train"})
        (data,) = tasks(recipe).values()
        assert sum(u.id.startswith("more") for u in data.splits["train"]) == 8
        rewritten(more, lambda row: row | {"split": "dev"})
        with pytest.raises(
            DataError, match="more has no training utterance with emotion; label it"
        ):
            tasks(recipe)

    def test_short_ones_are_left_out_too(self, recipe, more):
        rewritten(more, lambda row: row | {"duration": 0.2 if "s0" in row["id"] else 0.4})
        (data,) = tasks(recipe, min_seconds=0.3).values()
        assert sum(u.id.startswith("more") for u in data.splits["train"]) == 8

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"speaker": "s7"}, r"more has speaker 's7', who is in the test split; leave the"),
            ({"speaker": "s4"}, r"more has speaker 's4', who is in the dev split"),
            ({"id": "s0-0"}, "the id 's0-0' stands for another utterance already"),
            ({"audio": "TONES/s7-0.wav"}, "is a recording of the test split"),
            ({"emotion": "lout"}, "emotion 'lout' is outside the label set; .*'loud'"),
        ],
    )
    def test_what_would_spoil_the_test_is_refused(self, recipe, more, tiny_corpus, change, message):
        change = {k: v.replace("TONES", str(tiny_corpus.parent)) for k, v in change.items()}
        rewritten(more, lambda row: row | change if row["id"] == "more-s0-3" else row)
        with pytest.raises(DataError, match=message):
            tasks(recipe)

    def test_a_task_that_trains_nothing_has_no_use_for_it(self, recipe, more):
        with pytest.raises(DataError, match=r"all_test trains nothing; leave extra_training out"):
            tasks(recipe, split={"all_test": True})


class TestSeenByTheTeacher:
    def teach(self, more, *seen):
        card = read_cards(more)[0]
        write_cards(more, [replace(card, seen=seen)])

    def test_a_test_set_that_the_teacher_has_seen_is_refused(self, recipe, more, tiny_corpus):
        name = tiny_corpus.parent.name
        self.teach(more, Seen(name))
        with pytest.raises(
            DataError,
            match=rf"8 training labels are from the teacher t@1, .* trained on {name}, and 2 test "
            r"speakers are of it \(s6, s7\).*allow_seen_by_teacher: true",
        ):
            tasks(recipe)
        (data,) = tasks(recipe, allow_seen_by_teacher=True).values()
        assert len(data.origins) == 1

    def test_other_speakers_of_the_same_corpus_are_fair(self, recipe, more, tiny_corpus):
        name = tiny_corpus.parent.name
        self.teach(more, Seen(name, None, ("s0", "s5")))
        tasks(recipe)
        self.teach(more, Seen("by another name", None, ("s7",)))
        tasks(recipe)
        self.teach(more, Seen(name, None, ("s0", "s7")))
        with pytest.raises(DataError, match=r"and 1 test speakers are of it \(s7\)"):
            tasks(recipe)

    def test_a_corpus_is_known_by_what_it_was_read_as(self, recipe, more, tiny_corpus, workspace):
        corpus = prepare(tiny_corpus, workspace / "corpora" / "mine")
        about = json.loads((corpus.folder / "corpus.json").read_text())
        (corpus.folder / "corpus.json").write_text(json.dumps(about | {"source": "iemocap"}))
        self.teach(more, Seen("AbstractTTS/IEMOCAP"))
        tasks(recipe)
        with pytest.raises(DataError, match="trained on AbstractTTS/IEMOCAP, and 2 test speakers"):
            tasks(recipe, corpus="mine")

    def test_labels_that_are_not_learned_from_do_no_harm(self, recipe, more, tiny_corpus):
        self.teach(more, Seen(tiny_corpus.parent.name))
        rewritten(more, lambda row: row if "s0" in row["id"] else None)
        (data,) = tasks(recipe).values()
        assert list(data.origins) == []

    def test_labels_without_their_card_are_refused(self, recipe, more):
        (more / "teachers.json").unlink()
        with pytest.raises(DataError, match=r"labels are from 't@1', .* no card; put the teachers"):
            tasks(recipe)

    def test_it_is_refused_before_anything_is_trained_or_evaluated(
        self, recipe, more, workspace, tiny_corpus
    ):
        path = workspace / "r.json"
        change = {"tasks": {"emotion": {"extra_training": ["more/manifest.jsonl"]}}}
        path.write_text(json.dumps(merged(recipe, change)))
        CliRunner().invoke(cli.app, ["train", str(path), "--out", "run"], catch_exceptions=False)
        self.teach(more, Seen(tiny_corpus.parent.name))
        for command in (["train", str(path), "--out", "other"], ["evaluate", "run"]):
            with pytest.raises(DataError, match="allow_seen_by_teacher"):
                CliRunner().invoke(cli.app, command, catch_exceptions=False)
        assert not (workspace / "other").exists()


class TestShown:
    def test_a_run_tells_how_many_labels_are_a_teachers(self, recipe, more, workspace):
        change = {"tasks": {"emotion": {"extra_training": ["more/manifest.jsonl"]}}}
        recipe = read_recipe(merged(recipe, change))
        metrics = train_run(recipe, workspace / "run")
        line = "8 of 48 training labels are pseudo-labels of t@1, with a confidence of at least 0.9"
        assert metrics["pseudo_labels"] == {"emotion": [line]}
        assert evaluate_again(workspace / "run") == metrics
        result = CliRunner().invoke(cli.app, ["evaluate", "run"])
        assert f"emotion: {line}" in result.output
        seen = Run(workspace / "run").seen()
        assert [one.corpus for one in seen][1:] == ["more", "elsewhere"]
        assert seen[1].source == "wild"
        assert seen[1].speakers == ("new-s0", "new-s1")

    def test_the_plan_counts_their_hours(self, recipe, workspace, tiny_corpus):
        for name, hours in (("a", 30), ("b", 50)):
            made = prepare(tiny_corpus, Path("corpora", name))
            about = json.loads((made.folder / "corpus.json").read_text()) | {"hours": hours}
            (made.folder / "corpus.json").write_text(json.dumps(about))
        sizes = []
        for change in ({"corpus": "a"}, {"corpus": "a", "extra_training": ["b"]}):
            made = read_recipe(merged(recipe, {"tasks": {"emotion": change}}))
            sizes.append(float(plan_recipe(made)[-1][2][0][2].split()[0]))
        assert sizes[0] > 0.1
        assert sizes[1] == pytest.approx(sizes[0] * 80 / 30, rel=0.05)

    @pytest.mark.recipe
    def test_a_report_tells_it_of_each_row(self, recipe, more, workspace):
        emotion = {"emotion": {"extra_training": ["more/manifest.jsonl"]}}
        sweep = SweepFile(
            name="s", recipe=recipe, rows={"labelled": {}, "both": {"tasks": emotion}}, seeds=(1, 2)
        )
        done = run_sweep(sweep, workspace / "out")
        page = write_report(sweep, done, workspace / "out").read_text()
        assert page.count("pseudo-labels of t@1") == 1
        assert "<li>both: emotion: 8 of 48 training labels are pseudo-labels of t@1" in page

    def test_a_sweep_compares_with_and_without_at_several_sizes(self, recipe):
        def condition(*speakers):
            split = {"train_speakers": [*speakers]}
            labels = [f"labels/{len(speakers)}"]
            return {"tasks": {"emotion": {"split": split, "extra_training": labels}}}

        sweep = SweepFile(
            name="s",
            recipe=recipe,
            rows={"labelled": {"tasks": {"emotion": {"extra_training": []}}}, "both": {}},
            conditions={"one": condition("s0"), "two": condition("s0", "s1")},
        )
        found = {
            (cell.row, cell.condition): (
                len(cell.recipe.tasks["emotion"].split.train_speakers),
                cell.recipe.tasks["emotion"].extra_training,
            )
            for cell in cells(sweep, Path("out"))
        }
        assert found == {
            ("labelled", "one"): (1, ()),
            ("both", "one"): (1, ("labels/1",)),
            ("labelled", "two"): (2, ()),
            ("both", "two"): (2, ("labels/2",)),
        }

    def test_a_teacher_that_tells_nothing_is_pointed_out(self, recipe, more):
        card = read_cards(more)[0]
        write_cards(more, [replace(card, seen=(), knows=False)])
        (data,) = tasks(recipe).values()
        assert data.origins[0].text().endswith("its card does not say what it was trained on")

    def test_pseudo_labels_of_a_test_set_are_told_too(self, recipe, more):
        speakers = {"test_speakers": ["new-s1"], "dev_speakers": ["new-s0"]}
        rewritten(more, lambda row: row | {"speaker": f"new-s{int(row['id'][-1]) % 3}"})
        recipe = merged(
            recipe, {"tasks": {"emotion": {"corpus": "more/manifest.jsonl", "split": speakers}}}
        )
        (data,) = load_tasks(read_recipe(recipe)).values()
        assert " and 3 of 6 test labels are pseudo-labels of t@1" in data.origins[0].text()


@pytest.mark.recipe
def test_the_whole_way_from_a_teacher_to_its_student(recipe, workspace, tiny_corpus):
    """A teacher labels three other speakers; a student of these is not tested on the teacher's."""
    speakers = {"train_speakers": ["s0", "s1"], "dev_speakers": ["s2"], "test_speakers": ["s6"]}
    change = {
        "tasks": {"emotion": {"split": speakers}},
        "training": {"steps": 60, "learning_rate": 0.03},
    }
    train_run(read_recipe(merged(recipe, change)), workspace / "teacher")
    summary = pseudo_label(
        str(tiny_corpus),
        find_teacher("teacher"),
        Path("labels"),
        threshold=0.5,
        only={"speaker": ["s3", "s4", "s5"]},
    )
    assert summary["kept"] > 8
    emotion = {"split": speakers | {"test_speakers": ["s7"]}, "extra_training": ["m"]}
    prepare(Path("labels", "manifest.jsonl"), Path("m"))
    change = {"tasks": {"emotion": emotion}, "training": {"steps": 4}}
    metrics = train_run(read_recipe(merged(recipe, change)), workspace / "student")
    shown = metrics["pseudo_labels"]["emotion"][0]
    assert summary["kept by split"]["dev"] > 8  # s4 and s5, in the corpus's own split
    assert shown.startswith("8 of 24 training labels are pseudo-labels of teacher/emotion@")
    assert find_corpus("m").source == tiny_corpus.parent.name
    unfair = speakers | {"test_speakers": ["s2"], "dev_speakers": ["s7"]}
    with pytest.raises(DataError, match=r"1 test speakers are of it \(s2\)"):
        train_run(
            read_recipe(merged(recipe, {"tasks": {"emotion": emotion | {"split": unfair}}})),
            workspace / "unfair",
        )
    assert not (workspace / "unfair").exists()
    student = find_teacher("student")
    assert {one.corpus for one in student.seen} == {tiny_corpus.parent.name, "m"}
