import csv
import io
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile as sf
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from speechfuse.cli import app
from speechfuse.errors import DataError, RunError, SpeechFuseError
from speechfuse.pipeline.answers import Answer, Label, Speakers, Transcript, Word
from speechfuse.predict import csv_lines, json_lines, subtitles
from speechfuse.turns import Turn

pytestmark = pytest.mark.recipe  # seconds in all: run by make test


@pytest.fixture(scope="module")
def trained(answering, tmp_path_factory, tiny_corpus):
    """A run beside a folder of clips."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run").symlink_to(answering)
    (folder / "clips" / "more").mkdir(parents=True)
    for place, name in (("", "s6-0"), ("", "s6-1"), ("more", "s7-0")):
        shutil.copy(tiny_corpus.parent / f"{name}.wav", folder / "clips" / place)
    (folder / "clips" / "notes.txt").write_text("no sound")
    return folder


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.chdir(trained)

    def call(*arguments):
        return CliRunner().invoke(app, ["predict", "run", *map(str, arguments)])

    return call


def test_a_line_for_each_file_and_task_and_pairs_at_the_end(run):
    done = run("clips")
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows[:6]] == ["asr", "emotion"] * 3
    assert len(rows) == 6 + 3
    assert all(-1 <= float(row[3]) <= 1 for row in rows[6:])
    alone = run("clips/s6-0.wav", "--task", "verification")
    assert isinstance(alone.exception, RunError)
    assert "give two or more" in str(alone.exception)


def test_tasks_may_be_named_with_a_comma(run):
    done = run("clips/s6-0.wav", "--task", "emotion, asr", "--device", "cpu")
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["emotion", "asr"]
    wrong = run("clips/s6-0.wav", "--task", "emotion,")
    assert "the run has no task ''" in str(wrong.exception)


@pytest.mark.parametrize("command", ["predict run clips", "serve run --port 0"])
def test_a_device_that_is_not_there_is_refused(trained, monkeypatch, command):
    monkeypatch.chdir(trained)
    done = CliRunner().invoke(app, [*command.split(), "--device", "quantum"])
    assert isinstance(done.exception, RunError)
    assert str(done.exception).startswith("no device 'quantum' that torch can use here; choose")


@pytest.mark.parametrize("form", ["text", "csv", "srt"])
def test_layers_are_refused_where_nothing_shows_them(run, form):
    done = run("clips/s6-0.wav", "--layers", "--format", form)
    assert isinstance(done.exception, RunError)
    assert str(done.exception) == "--layers are written as JSON alone; add --format json"


def test_json_holds_everything(run):
    done = run("clips/s6-0.wav", "--format", "json", "--layers")
    read = json.loads(done.stdout)
    assert read["audio"] == "clips/s6-0.wav"
    assert set(read["results"]) == {"asr", "emotion", "verification"}
    assert sum(read["results"]["emotion"]["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert len(read["results"]["verification"]["vector"]) == 8
    assert read["layers"]["asr"][0]["weights"] == [1.0]


def test_csv_is_a_table(run):
    rows = list(csv.DictReader(io.StringIO(run("clips", "--format", "csv").stdout)))
    assert [row["task"] for row in rows] == ["asr", "emotion", "verification"] * 3
    assert all(0 < float(row["score"]) <= 1 for row in rows if row["task"] == "emotion")
    assert {row["end"] for row in rows} == {"0.400"}


@pytest.mark.recipe
@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_a_file_that_was_broken_off_is_gone_on_with(run, trained, form, tmp_path):
    out = tmp_path / "out"
    asked = ["--format", form, "--out", out, "--task", "asr", "--task", "emotion"]
    assert run("clips", *asked).exit_code == 0
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:-1]) + lines[-1][:-3])
    assert run("clips", *asked).exit_code == 0
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
    assert run("clips", *asked).exit_code == 0
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
    out.write_text("header\nsomething else\n")
    other = run("clips", *asked)
    assert isinstance(other.exception, SpeechFuseError)
    assert out.read_text() == "header\nsomething else\n"


@pytest.fixture
def other(trained, tmp_path):
    """The same run with other weights."""
    folder = tmp_path / "other"
    shutil.copytree(trained / "run", folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata, names = file.metadata(), file.keys()
        weights = {name: file.get_tensor(name) for name in names}
    save_file(
        {k: v + v.is_floating_point() for k, v in weights.items()},
        folder / "model.safetensors",
        metadata,
    )
    return folder


@pytest.mark.parametrize("form", ["json", "srt"])
def test_what_else_was_asked_is_not_gone_on_with(run, other, form, tmp_path):
    out = tmp_path / "out"
    asked = ["clips", "--format", form, "--out", out, "--task", "asr"]
    assert run(*asked).exit_code == 0
    there = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    another = CliRunner().invoke(app, ["predict", str(other), *map(str, asked)])
    for done, what in (
        (another, "run"),
        *([(run(*asked, "--layers"), "layers")] if form == "json" else []),
        (run(*asked, "--task", "emotion"), "tasks"),
    ):
        assert isinstance(done.exception, DataError)
        assert f"differs in {what});" in str(done.exception)
    assert {path: path.read_bytes() for path in there} == there
    (tmp_path / ".out.made_by").unlink(missing_ok=True)
    (out / ".made_by").unlink() if form == "srt" else None
    unknown = run(*asked)
    assert isinstance(unknown.exception, DataError)
    assert "nothing says what made it" in str(unknown.exception)


@pytest.mark.parametrize("form", ["json", "csv", "srt"])
def test_changed_audio_is_answered_anew(run, form, tmp_path):
    for name in ("a", "b"):
        shutil.copy("clips/s6-0.wav", tmp_path / f"{name}.wav")
    out = tmp_path / ("out" if form == "srt" else "out.txt")
    asked = [tmp_path / "a.wav", tmp_path / "b.wav", "--task", "asr", "--format", form]
    assert run(*asked, "--out", out).exit_code == 0
    samples = sf.read("clips/more/s7-0.wav")[0]
    sf.write(tmp_path / "b.wav", np.concatenate([samples, samples, samples]), 16000)
    old = {path: path.stat().st_mtime_ns for path in out.rglob("*.srt")}
    assert run(*asked, "--out", out).exit_code == 0
    assert [path.name for path in old if path.stat().st_mtime_ns != old[path]] == ["b.srt"][
        : len(old)
    ]
    fresh = tmp_path / ("fresh" if form == "srt" else "fresh.txt")
    assert run(*asked, "--out", fresh).exit_code == 0
    pairs = [(out, fresh)] if form != "srt" else [(out / n, fresh / n) for n in ("a.srt", "b.srt")]
    for mine, anew in pairs:
        assert mine.read_text() == anew.read_text()


def test_subtitles_of_other_audio_are_not_taken_for_its_own(run, tmp_path):
    shutil.copy("clips/more/s7-0.wav", tmp_path / "s6-0.wav")
    out = tmp_path / "subs"
    assert run("clips/s6-0.wav", "--format", "srt", "--out", out).exit_code == 0
    done = run(tmp_path / "s6-0.wav", "--format", "srt", "--out", out)
    assert isinstance(done.exception, DataError)
    assert "is of clips/s6-0.wav" in str(done.exception)


@pytest.mark.parametrize("out", [True, False])
def test_one_bar_for_all_files(run, out, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def shown(first=True):
        yield lambda *told: seen.append(told)

    monkeypatch.setattr("speechfuse.cli.begin.shown_progress", shown)
    monkeypatch.setattr("speechfuse.cli.begin.on_screen", lambda: True)
    where = ["--out", tmp_path / "out"] if out else []
    done = run("clips", "--task", "asr", *where)
    assert done.exit_code == 0, done.output
    assert {(what, total) for what, _, total in seen} == {("seconds of audio", 2)}
    assert [done for _, done, _ in seen].count(2) == 1
    if out:
        assert "holds the answers to 3 of 3 recordings" in done.stderr


def test_errors_of_a_file_spare_the_rest(run, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    out = tmp_path / "out.jsonl"
    done = run("clips", tmp_path / "bad.wav", "--format", "json", "--out", out)
    assert done.exit_code == 1
    assert "bad.wav\terror\tcannot decode" in done.stdout
    read = [json.loads(line) for line in out.read_text().splitlines()]
    assert [("error" in one) for one in read] == [False, False, False, True]
    shutil.copy("clips/s6-0.wav", tmp_path / "bad.wav")
    assert run("clips", tmp_path / "bad.wav", "--format", "json", "--out", out).exit_code == 0
    read = [json.loads(line) for line in out.read_text().splitlines()]
    assert [("error" in one) for one in read] == [False] * 4
    printed = run("clips/notes.txt", "clips/s6-0.wav", "--task", "asr")
    assert printed.exit_code == 1
    assert "notes.txt\terror\t" in printed.stdout
    assert "s6-0.wav\tasr\t" in printed.stdout


def test_an_empty_folder_and_a_missing_file_spare_the_rest(run, tmp_path):
    (tmp_path / "empty").mkdir()
    gone = tmp_path / "gone.wav"
    done = run(tmp_path / "empty", "clips/s6-0.wav", gone, "--task", "asr")
    assert done.exit_code == 1, done.output
    empty, missing, answered = done.stdout.splitlines()
    assert empty.startswith(f"{tmp_path / 'empty'}\terror\t{tmp_path / 'empty'} holds no audio")
    assert missing.startswith(f"{gone}\terror\tno audio file at {gone}")
    assert answered.startswith("clips/s6-0.wav\tasr\t")


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("out", [True, False])
def test_a_missing_file_has_an_answer_of_the_form_that_was_asked(run, form, out, tmp_path):
    written = tmp_path / "out"
    asked = ["clips/s6-0.wav", "gone.wav", "--task", "asr", "--format", form]
    for _ in range(2):  # the second goes on
        done = run(*asked, *(["--out", written] if out else []))
        assert done.exit_code == 1, done.output
        text = written.read_text() if out else done.stdout
        if form == "json":
            read = {one["audio"]: one.get("error") for one in map(json.loads, text.splitlines())}
        else:
            rows = list(csv.DictReader(io.StringIO(text)))
            wrong = {row["audio"]: row["prediction"] for row in rows if row["task"] == "error"}
            read = {row["audio"]: wrong.get(row["audio"]) for row in rows}
        assert read["clips/s6-0.wav"] is None
        assert read["gone.wav"].startswith("no audio file at gone.wav")
        assert len(read) == 2
        if out:
            assert "holds the answers to 1 of 2 recordings" in done.stderr
            assert done.stdout.startswith("gone.wav\terror\t")


def test_printed_subtitles_are_of_one_file_and_nothing_else(run):
    several = run("clips", "--format", "srt")
    assert isinstance(several.exception, RunError)
    assert str(several.exception) == "subtitles of 3 files are as many; add --out FOLDER"
    one = run("clips/s6-0.wav", "gone.wav", "--format", "srt")
    assert one.exit_code == 1
    assert one.stderr.startswith("gone.wav\terror\tno audio file")
    assert run("clips/s6-0.wav", "--format", "srt").stdout == one.stdout
    wrong = run("clips/notes.txt", "--format", "srt")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("clips/notes.txt\terror\tcannot decode")


def test_many_files_are_compared_only_if_asked(run, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(21):
        shutil.copy("clips/s6-0.wav", many / f"{number}.wav")
    done = run(many)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2 * 21
    assert "pairs of files are not compared; --task verification does" in done.stderr
    assert len(run(many, "--task", "verification").stdout.splitlines()) == 21 * 20 / 2
    out = tmp_path / "out.tsv"
    written = run("clips", "--out", out)
    assert written.exit_code == 0, written.output
    assert len(out.read_text().splitlines()) == 2 * 3
    assert "pairs of files are not compared" in written.stderr
    asked = run("clips", "--out", tmp_path / "other.tsv", "--task", "asr,verification")
    assert isinstance(asked.exception, RunError)
    assert "use --format json with --out" in str(asked.exception)


def test_wrong_paths_alone_are_refused_before_the_model_is_loaded(tmp_path):
    called = "import sys; from speechfuse.cli import app; sys.argv = ['x', *sys.argv[1:]]\n"
    called += "try: app()\nexcept Exception as error: print(type(error).__name__, error)\n"
    called += "assert 'torch' not in sys.modules"
    (tmp_path / "recipe.yaml").touch()
    place = str(tmp_path)
    command = [sys.executable, "-c", called, "predict", place, "gone.wav", place]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "DataError no audio file at gone.wav, found nothing; check the path"
    assert second.startswith(f"{tmp_path} holds no audio (.aif")


def test_subtitles_end_at_pauses_and_stay_short():
    words = [Word(f"word{i}", i * 0.5, i * 0.5 + 0.4, 1.0) for i in range(9)]
    words += [Word("late", 3661.0, 3661.5, 1.0)]
    blocks = subtitles(words).split("\n\n")
    assert blocks[0].splitlines() == [
        "1",
        "00:00:00,000 --> 00:00:03,400",
        "word0 word1 word2 word3 word4 word5 word6",
    ]
    assert blocks[-1].splitlines()[1:] == ["01:01:01,000 --> 01:01:01,500", "late"]
    assert len(blocks) == 3
    assert subtitles([]) == ""


def test_subtitles_are_written_for_each_file(run, tmp_path):
    out = tmp_path / "subs"
    assert run("clips", "--format", "srt", "--out", out).exit_code == 0
    assert srt_below(out) == ["more/s7-0.srt", "s6-0.srt", "s6-1.srt"]
    none = run("clips", "--format", "srt", "--task", "emotion")
    assert isinstance(none.exception, RunError)
    assert "tells no times of words for emotion" in str(none.exception)


def test_a_text_that_does_not_align_is_a_caption_all_the_same(run, tmp_path, monkeypatch):
    text = json.loads(run("clips/s6-0.wav", "--format", "json").stdout)["results"]["asr"]["text"]
    assert text
    monkeypatch.setattr("speechfuse.pipeline.speech_model.align", lambda *given: None)
    out = tmp_path / "subs"
    assert run("clips/s6-0.wav", "--format", "srt", "--out", out).exit_code == 0
    (written,) = out.glob("*.srt")
    assert written.read_text() == f"1\n00:00:00,000 --> 00:00:00,400\n{text}\n"


def srt_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.srt"))


def test_files_of_one_name_keep_subtitles_of_their_own(run, tmp_path):
    for place in ("a/x.wav", "a/x.flac", "b/x.wav", "b/y.wav"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        with sf.SoundFile(tmp_path / place, "w", 16000, 1) as sound:
            sound.write(sf.read("clips/s6-0.wav")[0])
    out = tmp_path / "subs"
    assert run(tmp_path, "--format", "srt", "--out", out).exit_code == 0
    assert srt_below(out) == ["a/x.flac.srt", "a/x.wav.srt", "b/x.srt", "b/y.srt"]
    twice = run(tmp_path / "a/x.wav", tmp_path / "b", "--format", "srt", "--out", tmp_path / "no")
    assert isinstance(twice.exception, DataError)
    assert "a/x.wav and " in str(twice.exception)
    assert not (tmp_path / "no").exists()


def test_answers_as_text_in_every_form():
    answer = Answer(
        "a.wav",
        2.0,
        {
            "asr": Transcript("hello", None),
            "emotion": Label("sad", {"sad": 0.75, "happy": 0.25}),
            "who": Speakers([Turn("speaker 1", 0.0, 1.0), Turn("speaker 2", 0.5, 2.0)]),
        },
    )
    (line,) = json_lines([answer])
    assert json.loads(line)["results"]["asr"] == {"text": "hello", "words": None, "cut": False}
    rows = list(csv.reader(csv_lines([answer])))
    assert rows[2] == ["a.wav", "emotion", "sad", "0.7500", "0.000", "2.000"]
    assert rows[4] == ["a.wav", "who", "speaker 2", "", "0.500", "2.000"]
