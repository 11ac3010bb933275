"""Corpora: import, folder, splits, trials and joining."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.data.batching import by_duration
from speechfuse.data.corpus import read_corpus, read_trials, replacing
from speechfuse.data.manifests import prepare
from speechfuse.data.splits import make_trials, split_utterances
from speechfuse.errors import DataError
from speechfuse.recipe import SplitRecipe
from speechfuse.taskdata import find_corpus
from speechfuse.tasks.verification import Verification
from speechfuse.types import Trial, Utterance


@pytest.fixture
def audio(tmp_path):
    """Four one-second files, one of them in stereo at 8 kHz."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(folder / f"{name}.wav", 0.1 * np.ones(16000), 16000)
    soundfile.write(folder / "d.wav", 0.1 * np.ones((8000, 2)), 8000)
    return folder


def manifest(folder: Path, text: str, name: str = "manifest.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


class TestManifests:
    def test_csv_tsv_and_jsonl_give_the_same_corpus(self, audio, tmp_path):
        rows = [
            {"path": "a.wav", "text": "one", "speaker": "x", "mood": "fine"},
            {"path": "d.wav", "start": "0.25", "duration": "0.5", "speaker": "y"},
        ]
        columns = ["path", "start", "duration", "text", "speaker", "mood"]
        lines = [[r.get(c, "") for c in columns] for r in rows]
        found = []
        for name, separator in (("m.csv", ","), ("m.tsv", "\t")):
            body = "\n".join(separator.join(line) for line in [columns, *lines])
            found.append(prepare(manifest(audio, body, name), tmp_path / name).utterances)
        body = "\n".join(json.dumps(row) for row in rows)
        found.append(prepare(manifest(audio, body, "m.jsonl"), tmp_path / "j").utterances)
        assert found[0] == found[1] == found[2]
        one, two = found[0]
        assert (one.id, one.duration, one.text, one.extra) == ("a", 1.0, "one", {"mood": "fine"})
        assert (two.id, two.start, two.duration, two.text) == ("d", 0.25, 0.5, None)

    def test_a_prepared_folder_reads_back_and_lhotse_reads_it(self, audio, tmp_path):
        from lhotse import CutSet, RecordingSet, SupervisionSet

        body = "audio,speaker,emotion,split\na.wav,x,happy,train\nd.wav,y,sad,validation\n"
        made = prepare(manifest(audio, body), tmp_path / "corpus")
        again = read_corpus(tmp_path / "corpus")
        assert again.utterances == made.utterances
        assert [u.split for u in again.utterances] == ["train", "dev"]
        assert again.summary()["emotion"] == {"happy": 1, "sad": 1}
        assert len(RecordingSet.from_file(tmp_path / "corpus" / "recordings.jsonl")) == 2
        assert len(SupervisionSet.from_file(tmp_path / "corpus" / "supervisions.jsonl")) == 2
        cut = CutSet.from_jsonl(tmp_path / "corpus" / "cuts.jsonl")["d"]
        assert cut.recording.sampling_rate == 8000
        assert cut.supervisions[0].custom["emotion"] == "sad"

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("name,text\nx,y\n", "no column 'audio'"),
            ("audio\nmissing.wav\n", "no audio file at"),
            ("audio\nbroken.wav\n", "cannot decode"),
            ("audio\nempty.wav\n", "holds no samples"),
            ("audio,start\na.wav,1.5\n", "starts at 1.5 s"),
            ("audio,duration\na.wav,2\n", "2 s from 0 s on"),
            ("audio,start\na.wav,soon\n", "start and duration are seconds"),
            ("audio,split\na.wav,tset\n", "unknown split 'tset'; .* Did you mean 'test'"),
            ("audio,text\na.wav,yes, please\n", "line 2: more fields than columns"),
            ("audio\na.wav\na.wav\n", "'a' stands for 2 utterances"),
            ("audio\n", "has no utterances"),
            ("id,audio\nx,\ny,a.wav\n", "utterance 1: the audio column is empty"),
        ],
    )
    def test_a_bad_row_is_named_and_nothing_is_left(self, audio, tmp_path, body, message):
        (audio / "broken.wav").write_text("no sound")
        soundfile.write(audio / "empty.wav", np.zeros(0), 16000)
        with pytest.raises(DataError, match=message):
            prepare(manifest(audio, body), tmp_path / "out" / "corpus")
        assert not (tmp_path / "out").exists()

    def test_all_bad_rows_are_named_at_once(self, audio, tmp_path):
        (audio / "broken.wav").write_text("no sound")
        rows = ["a.wav,1.5,", "missing.wav,,", "broken.wav,,", "a.wav,,tset", "b.wav,,", "b.wav,,"]
        body = "\n".join(["audio,start,split", *rows, ""])
        with pytest.raises(DataError) as caught:
            prepare(manifest(audio, body), tmp_path / "corpus")
        one, two, three, four, five = str(caught.value).splitlines()
        assert "utterance 1: starts at 1.5 s" in one
        assert f"utterance 2: no audio file at {audio / 'missing.wav'}" in two
        assert three.startswith(f"cannot decode {audio / 'broken.wav'} of {audio / 'manifest.csv'}")
        assert "utterance 4: unknown split 'tset'" in four
        assert five.endswith("the id 'b' stands for 2 utterances")
        with pytest.raises(DataError, match=r"(?s)line 1: found .*line 3: found"):
            prepare(manifest(audio, '{x\n{"audio": "a.wav"}\n3\n', "m.jsonl"), tmp_path / "c")
        with pytest.raises(DataError, match=r"(?s)line 2: more fields.*line 4: more fields"):
            prepare(manifest(audio, "audio\na.wav,1\na.wav\nb.wav,2\n"), tmp_path / "c")

    def test_of_many_bad_rows_the_first_are_named(self, audio, tmp_path):
        body = "\n".join(["audio", *(f"{number}.wav" for number in range(1020)), ""])
        with pytest.raises(DataError) as caught:
            prepare(manifest(audio, body), tmp_path / "corpus")
        *named, last = str(caught.value).splitlines()
        assert len(named) == 20
        assert "utterance 20: no audio file at" in named[-1]
        assert last.endswith("manifest.csv: 1,000 more like these")

    def test_a_lone_quote_in_a_tsv_is_a_letter(self, audio, tmp_path):
        body = 'audio\ttext\na.wav\t"hello\nb.wav\t5" wide\nc.wav\tso "called"\n'
        found = prepare(manifest(audio, body, "m.tsv"), tmp_path / "c").utterances
        assert [u.text for u in found] == ['"hello', '5" wide', 'so "called"']

    @pytest.mark.parametrize(
        ("name", "body"),
        [
            ("m.csv", "id,audio\nx,a.wav\n"),
            ("m.tsv", "id\taudio\nx\ta.wav\n"),
            ("m.jsonl", '{"id": "x", "audio": "a.wav"}\n'),
        ],
    )
    def test_a_byte_order_mark_is_no_part_of_a_name(self, audio, tmp_path, name, body):
        (audio / name).write_text(body, encoding="utf-8-sig")
        (only,) = prepare(audio / name, tmp_path / "c").utterances
        assert (only.id, only.extra) == ("x", {})

    def test_other_files_are_refused(self, audio, tmp_path):
        with pytest.raises(DataError, match=r"a manifest is \.csv, \.tsv or \.jsonl"):
            prepare(manifest(audio, "x", "m.txt"), tmp_path / "c")
        for line in ("{not json", "[1, 2]", "3"):
            with pytest.raises(DataError, match=r"m\.jsonl, line 2: found .*, expected"):
                prepare(manifest(audio, f"\n{line}", "m.jsonl"), tmp_path / "c")
        (audio / "m.csv").write_bytes("audio,text\na.wav,für\n".encode("latin-1"))
        with pytest.raises(DataError, match="cannot be read as csv"):
            prepare(audio / "m.csv", tmp_path / "c")
        with pytest.raises(DataError, match="expected a manifest or a Kaldi folder"):
            prepare(tmp_path / "nowhere.csv", tmp_path / "c")


class TestKaldi:
    def folder(self, audio, **files):
        for name, text in files.items():
            (audio / name.replace("_", ".")).write_text(text)
        return audio

    def test_segments_and_labels(self, audio, tmp_path):
        self.folder(
            audio,
            wav_scp="rec1 a.wav\nrec2 d.wav\n",
            segments="u1 rec1 0.0 0.5\nu2 rec1 0.5 1.0\nu3 rec2 0.1 0.9\n",
            text="u1 hello there\nu2 again\nu3 yes\n",
            utt2spk="u1 s1\nu2 s1\nu3 s2\n",
            utt2emotion="u1 calm\nu2 loud\nu3 calm\n",
        )
        corpus = prepare(audio, tmp_path / "corpus")
        found = [
            (u.id, u.start, u.duration, u.text, u.speaker, u.emotion) for u in corpus.utterances
        ]
        assert found == [
            ("u1", 0.0, 0.5, "hello there", "s1", "calm"),
            ("u2", 0.5, 0.5, "again", "s1", "loud"),
            ("u3", 0.1, pytest.approx(0.8), "yes", "s2", "calm"),
        ]

    def test_without_segments_each_recording_is_an_utterance(self, audio, tmp_path):
        corpus = prepare(self.folder(audio, wav_scp="r1 a.wav\nr2 b.wav\n"), tmp_path / "corpus")
        assert [(u.id, u.duration) for u in corpus.utterances] == [("r1", 1.0), ("r2", 1.0)]

    def test_commands_are_not_run(self, audio, tmp_path):
        with pytest.raises(DataError, match="commands are not run"):
            prepare(self.folder(audio, wav_scp="r1 touch /tmp/x |\n"), tmp_path / "corpus")

    def test_a_table_that_is_not_utf_8_is_named(self, audio, tmp_path):
        self.folder(audio, wav_scp="r1 a.wav\n")
        (audio / "text").write_bytes("r1 für".encode("latin-1"))
        with pytest.raises(DataError, match="text is no text in UTF-8"):
            prepare(audio, tmp_path / "corpus")

    def test_all_bad_lines_are_named_at_once(self, audio, tmp_path):
        self.folder(audio, wav_scp="r1 a.wav\n", segments="u1 r1 0\nu2 r1 0.0 0.5\nu3 r2 0 1\n")
        with pytest.raises(DataError, match=r"(?s)line 1: found 'u1 r1 0'.*line 3: 'r2' is not in"):
            prepare(audio, tmp_path / "corpus")

    def test_a_folder_without_wav_scp(self, audio, tmp_path):
        with pytest.raises(DataError, match=r"has no wav\.scp"):
            prepare(audio, tmp_path / "corpus")

    @pytest.mark.parametrize("line", ["u2 rec1 0.5", "u2 rec1 0.5 end", "u2 rec9 0.5 1.0"])
    def test_a_bad_segment_is_named(self, audio, tmp_path, line):
        self.folder(audio, wav_scp="rec1 a.wav\n", segments=f"u1 rec1 0.0 0.5\n\n{line}\n")
        with pytest.raises(DataError, match="segments, line 3: "):
            prepare(audio, tmp_path / "corpus")


class TestReplacing:
    ROWS = "audio,text,speaker\na.wav,one,x\nb.wav,two,x\nc.wav,three,x\nd.wav,four,x\n"

    def test_joining_twice_gives_the_second_and_leaves_nothing_of_the_first(self, audio, tmp_path):
        folder = tmp_path / "out" / "joined"
        prepare(manifest(audio, self.ROWS), folder, join=2)
        (made,) = prepare(manifest(audio, self.ROWS), folder, join=4).utterances
        assert made == read_corpus(folder).utterances[0]
        assert made.audio.is_file()
        assert [p.name for p in (folder / "audio").iterdir()] == [made.audio.name]
        assert list((tmp_path / "out").iterdir()) == [folder]

    def test_trials_of_the_corpus_before_are_gone(self, audio, tmp_path):
        (audio / "trials.tsv").write_text("1 a b\n")
        folder = tmp_path / "corpus"
        assert prepare(manifest(audio, "audio\na.wav\nb.wav\n"), folder).trials
        (audio / "trials.tsv").unlink()
        prepare(manifest(audio, "audio\nc.wav\n"), folder)
        assert [u.id for u in read_corpus(folder).utterances] == ["c"]

    @pytest.mark.parametrize("join", [1, 2])
    def test_a_folder_of_something_else_is_left_alone(self, audio, tmp_path, join):
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(DataError, match=r"no corpus of ours \(no corpus\.json\)"):
            prepare(manifest(audio, self.ROWS), folder, join=join)
        (folder / "corpus.json").write_text("{}")  # earlier versions wrote among other files
        with pytest.raises(DataError, match=r"more than a corpus: thesis\.tex"):
            prepare(manifest(audio, self.ROWS), folder, join=join)
        assert sorted(p.name for p in folder.iterdir()) == ["corpus.json", "thesis.tex"]
        with pytest.raises(DataError, match="is a file"):
            prepare(manifest(audio, self.ROWS), folder / "thesis.tex", join=join)

    def test_an_empty_folder_is_taken_but_not_the_current_one(self, audio, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        assert len(prepare(manifest(audio, self.ROWS), tmp_path / "empty").utterances) == 4
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(DataError, match="the current folder"):
            prepare(manifest(audio, self.ROWS), Path())

    def test_a_corpus_is_not_replaced_by_one_made_of_its_own_audio(self, audio, tmp_path):
        folder = tmp_path / "joined"
        (made,) = prepare(manifest(audio, self.ROWS), folder, join=4).utterances
        with pytest.raises(DataError, match="which is to be replaced"):
            prepare(manifest(audio, f"audio\n{made.audio}\n"), folder)
        assert made.audio.is_file()

    def test_an_error_leaves_the_old_corpus_and_nothing_else(self, audio, tmp_path, monkeypatch):
        folder = tmp_path / "out" / "corpus"
        prepare(manifest(audio, "audio\na.wav\n"), folder)

        def stop(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(manifest(audio, self.ROWS), folder, join=2, progress=stop)
        rename = Path.rename

        def full(self, target):
            if self.parent.name == "new":
                raise OSError("no space left on device")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="no space"):
            prepare(manifest(audio, self.ROWS), folder)
        assert [u.id for u in read_corpus(folder).utterances] == ["a"]
        assert list((tmp_path / "out").iterdir()) == [folder]

    def test_a_link_to_a_corpus_stays_a_link(self, audio, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "corpus")
        for _ in range(2):
            with replacing(tmp_path / "link") as out:
                (out / "corpus.json").write_text("{}")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "corpus" / "corpus.json").is_file()


@pytest.mark.parametrize("source", ["manifest.tsv", "."])
def test_a_source_in_the_current_folder_is_named_after_it(audio, tmp_path, monkeypatch, source):
    here = audio.rename(tmp_path / "birds")
    manifest(here, "audio\na.wav\n", "manifest.tsv")
    manifest(here, "r1 a.wav\n", "wav.scp")
    monkeypatch.chdir(here)
    monkeypatch.setenv("SPEECHFUSE_CORPORA", str(tmp_path / "corpora"))
    done = CliRunner().invoke(cli.app, ["prepare", source], catch_exceptions=False)
    assert done.exit_code == 0
    assert [p.name for p in (tmp_path / "corpora").iterdir()] == ["birds"]
    assert read_corpus(tmp_path / "corpora" / "birds").name == "birds"


def test_trials_added_or_changed_beside_a_manifest_are_found(audio, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHFUSE_CORPORA", str(tmp_path / "corpora"))
    source = str(manifest(audio, "audio\na.wav\nb.wav\nc.wav\n"))
    assert find_corpus(source).trials == ()
    (audio / "trials.tsv").write_text("1 a b\n")
    assert [t.test for t in find_corpus(source).trials] == ["b"]
    (audio / "trials.tsv").write_text("1 a c\n")
    os.utime(audio / "trials.tsv", (1, 1))
    assert [t.test for t in find_corpus(source).trials] == ["c"]


class TestTrials:
    def utterances(self):
        return [
            Utterance(id=f"u{i}", audio=Path(f"data/s{i % 2}/u{i}.wav"), speaker=f"s{i % 2}")
            for i in range(4)
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "label\tenrol\ttest\n1\tu0\tu2\n0\tu0\tu1\n",
            "label enroll test\n1 s0/u0.wav s0/u2.wav\n0 u0.wav u1.wav\n",
            "enrolment,test,label\nu0,u2,1\nu0,u1,0\n",
            "1 u0 u2\n0 u0 u1\n",
        ],
    )
    def test_ids_paths_and_column_orders_are_understood(self, tmp_path, text):
        (tmp_path / "trials.tsv").write_text(text)
        found = read_trials(tmp_path / "trials.tsv", self.utterances())
        assert [(t.enrolment, t.test, t.same) for t in found] == [
            ("u0", "u2", True),
            ("u0", "u1", False),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("label enrol other\n1 u0 u1\n", "expected label, enrol, test"),
            ("1 u0\n", "line 1: expected a label 0 or 1"),
            ("label enrol test\n1 u0 u1\nyes u0 u1\n", "line 3: expected a label"),
            ("1 u0 u9\n", "no utterance 'u9'"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path, text, message):
        (tmp_path / "trials.tsv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_trials(tmp_path / "trials.tsv", self.utterances())

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        for path in (tmp_path / "trials.tsv", tmp_path):
            with pytest.raises(DataError, match=f"no file at {path}"):
                read_trials(path, self.utterances())

    def test_a_name_of_two_utterances_is_refused_and_their_ids_are_not(self, tmp_path):
        utterances = [
            Utterance(id="1", audio=Path("data/x/a.wav")),
            Utterance(id="2", audio=Path("data/y/a.wav")),
            Utterance(id="3", audio=Path("data/y/long.wav")),
            Utterance(id="4", audio=Path("data/y/long.wav"), start=1.0),
            Utterance(id="long", audio=Path("data/z/b.wav")),
        ]
        path = tmp_path / "trials.tsv"
        path.write_text("1 1 y/a.wav\n0 3 long\n")
        assert [(t.enrolment, t.test) for t in read_trials(path, utterances)] == [
            ("1", "2"),
            ("3", "long"),
        ]
        for name, message in (("a.wav", "such as 1 and 2"), ("y/long.wav", "such as 3 and 4")):
            path.write_text(f"1 1 4\n1 1 {name}\n")
            with pytest.raises(DataError, match=f"line 2: '{name}' stands for 2 .*{message}"):
                read_trials(path, utterances)

    def test_made_trials_hold_all_pairs_of_a_speaker_and_twice_as_many_others(self):
        utterances = [
            Utterance(id=f"{s}-{i}", audio=Path("x"), speaker=s) for s in "abcd" for i in range(6)
        ]
        trials = make_trials(utterances)
        same = {(t.enrolment, t.test) for t in trials if t.same}
        other = {(t.enrolment, t.test) for t in trials if not t.same}
        assert len(same) == 4 * 15
        assert len(other) == 2 * len(same)
        assert all(a[0] == b[0] and a != b for a, b in same)
        assert all(a[0] != b[0] for a, b in other)
        assert trials == make_trials(utterances)


class TestSplits:
    def utterances(self, split=None):
        return [
            Utterance(id=f"{s}{i}", audio=Path("x"), speaker=f"s{s}", split=split and split(s))
            for s in range(10)
            for i in range(3)
        ]

    def speakers(self, splits):
        return {name: {u.speaker for u in members} for name, members in splits.items()}

    def test_without_any_split_speakers_are_shared_out(self):
        found = self.speakers(split_utterances(self.utterances(), SplitRecipe(), "here"))
        assert [len(found[s]) for s in ("train", "dev", "test")] == [7, 1, 2]
        assert not found["train"] & found["dev"] | found["dev"] & found["test"]

    def test_the_corpus_split_counts_and_dev_is_of_other_speakers(self):
        utterances = self.utterances(lambda s: "test" if s < 3 else "train")
        found = self.speakers(split_utterances(utterances, SplitRecipe(), "here"))
        assert found["test"] == {"s0", "s1", "s2"}
        assert len(found["dev"]) == 1
        assert len(found["train"]) == 6

    def test_named_speakers_come_first(self):
        choice = SplitRecipe(test_speakers=("s1",), dev_speakers=("s2",), train_speakers=("s3",))
        utterances = self.utterances(lambda s: "train")
        found = self.speakers(split_utterances(utterances, choice, "here"))
        assert found == {"train": {"s3"}, "dev": {"s2"}, "test": {"s1"}}
        rest = SplitRecipe(test_speakers=("s1",), dev_speakers=("s2",))
        assert len(self.speakers(split_utterances(utterances, rest, "here"))["train"]) == 8

    def test_development_may_be_a_share_of_the_training_utterances(self):
        utterances = self.utterances(lambda s: "test" if s < 3 else "train")
        choice = SplitRecipe(dev_share=0.2)
        one, two = (split_utterances(utterances, choice, "here") for _ in range(2))
        assert one == two
        trained = [u for u in utterances if u.split == "train"]
        assert len(one["dev"]) == round(0.2 * len(trained))
        assert sorted(u.id for u in one["dev"] + one["train"]) == sorted(u.id for u in trained)

    def test_what_is_learned_from_may_be_a_part(self):
        utterances = [
            replace(u, split=split, extra={"dataset": "ab"[i % 2]})
            for i, u in enumerate(self.utterances())
            for split in [("train", "dev", "test")[i // 2 % 3]]
        ]
        choice = SplitRecipe(learn_from={"dataset": "a"})
        found = split_utterances(utterances, choice, "here")
        assert {u.extra["dataset"] for u in found["train"] + found["dev"]} == {"a"}
        assert {u.extra["dataset"] for u in found["test"]} == {"a", "b"}
        nothing = SplitRecipe(learn_from={"dataset": "c"})
        with pytest.raises(DataError, match="the train split has 0 utterances"):
            split_utterances(utterances, nothing, "here")

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"test_speakers": ("s11",)}, "test speaker 's11' unknown"),
            ({"test_speakers": ("s1",), "train_speakers": ("s1", "s2")}, "'s1' is in train and in"),
            ({"train_speakers": ("s1", "s2")}, "the test split has 0 utterances of 0 speakers"),
        ],
    )
    def test_contradictions_are_named(self, choice, message):
        with pytest.raises(DataError, match=message):
            split_utterances(self.utterances(), SplitRecipe(**choice), "here")


def test_joined_clips_hold_their_texts_one_after_the_other(audio, tmp_path):
    body = "audio,text,speaker\na.wav,one,x\nb.wav,two,x\nc.wav,three,x\nd.wav,four,y\n"
    corpus = prepare(manifest(audio, body), tmp_path / "joined", join=2)
    (found,) = read_corpus(tmp_path / "joined").utterances
    assert found.speaker == "x"
    assert sorted(found.text.split())[0] in ("one", "three", "two")
    assert len(found.text.split()) == 2
    assert found.audio.is_file()
    assert 2.05 <= found.duration <= 2.25
    assert corpus.utterances[0].id == found.id
    with pytest.raises(DataError, match="no speaker has 4 clips to join, at most 3"):
        prepare(manifest(audio, body), tmp_path / "four", join=4)
    assert not (tmp_path / "four").exists()


def test_batches_hold_every_utterance_once_and_no_more_than_asked():
    random = np.random.default_rng(0)
    utterances = [
        Utterance(id=str(i), audio=Path("x"), duration=float(d))
        for i, d in enumerate(random.choice([0.5, 1.0, 2.5, 9.0], 50))
    ]
    batches = list(by_duration(utterances, 10.0))
    assert sorted(u.id for b in batches for u in b) == sorted(u.id for u in utterances)
    assert all(len(b) * max(u.duration for u in b) <= 10.0 for b in batches)
    for batch in by_duration(utterances, 10.0, equal=True):
        assert len({u.duration for u in batch}) == 1


@pytest.mark.parametrize("trials", [[], [Trial("a", "b", True)], [Trial("a", "b", False)]])
def test_trials_of_one_kind_are_refused(trials):
    with pytest.raises(DataError, match="needs both"):
        Verification().check_trials(trials)
