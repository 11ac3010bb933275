"""Corpora as their owners ship them: tiny trees of the same layout, names and label files."""

from collections import Counter

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.data.manifests import prepare
from speechfuse.data.readers import ml_superb
from speechfuse.data.readers.table import READERS, find_reader
from speechfuse.data.splits import split_utterances
from speechfuse.errors import DataError
from speechfuse.recipe import SplitRecipe


def sound(path, rate=16000):
    """A tenth of a second in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(rate // 10), rate)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def read(corpus, source, **options):
    """The prepared corpus and its utterances by id."""
    folder = source.parent / "corpora" / corpus
    made = prepare(source, folder, reader=READERS[corpus], **options)
    return made, {u.id: u for u in made.utterances}


def split_speakers(corpus, **choice):
    """Speakers by split, as a task gets them; those of train and dev never overlap."""
    splits = split_utterances(corpus.utterances, SplitRecipe(**choice), corpus.name)
    found = {split: {u.speaker for u in members} for split, members in splits.items()}
    assert all(found.values())
    assert not found["train"] & found["dev"]
    return found


class TestLabelsInNames:
    def test_emodb(self, source):
        for speaker in ("03", "08", "09", "10", "16"):
            for code in ("a01Fa", "a02Wb", "b10Nc", "b01Lb"):
                sound(source / "wav" / f"{speaker}{code}.wav")
        corpus, found = read("emodb", source)
        assert corpus.summary()["emotion"] == {"angry": 5, "bored": 5, "happy": 5, "neutral": 5}
        one = found["16a01Fa"]
        assert (one.speaker, one.language, one.extra) == ("16", "de", {"take": "a"})
        assert one.text == "Der Lappen liegt auf dem Eisschrank."
        found = split_speakers(corpus)
        assert not found["test"] & (found["train"] | found["dev"])
        assert split_speakers(corpus, test_speakers=("03",))["test"] == {"03"}

    def test_ravdess_reads_speech_and_leaves_songs(self, source):
        for actor in range(1, 6):
            folder = source / f"Actor_{actor:02d}"
            sound(folder / f"03-01-06-02-01-02-{actor:02d}.wav", 48000)
            sound(folder / f"03-01-01-01-02-01-{actor:02d}.wav", 48000)
            sound(folder / f"03-02-06-01-01-02-{actor:02d}.wav", 48000)
        corpus, found = read("ravdess", source)
        assert len(found) == 10
        one = found["03-01-06-02-01-02-04"]
        assert (one.emotion, one.speaker, one.text) == (
            "fearful",
            "04",
            "Kids are talking by the door.",
        )
        assert one.extra == {"intensity": "strong", "take": "02", "gender": "female"}
        assert not split_speakers(corpus)["test"] & split_speakers(corpus)["train"]

    def test_crema_d_without_its_faulty_files(self, source):
        for actor in (1001, 1002, 1003, 1076):
            sound(source / "AudioWAV" / f"{actor}_MTI_SAD_XX.wav")
            sound(source / "AudioWAV" / f"{actor}_IEO_ANG_HI.wav")
        sound(source / "AudioWAV" / "1064_IEO_DIS_MD.wav")
        sound(source / "AudioWAV" / "1040_ITH_SAD_X.wav")
        corpus, found = read("crema_d", source)
        assert len(found) == 8
        assert not {"1076_MTI_SAD_XX", "1064_IEO_DIS_MD"} & set(found)
        assert found["1040_ITH_SAD_X"].extra == {"level": "unspecified"}
        one = found["1076_IEO_ANG_HI"]
        assert (one.emotion, one.speaker, one.text) == ("angry", "1076", "It's eleven o'clock.")
        assert not split_speakers(corpus)["test"] & split_speakers(corpus)["train"]

    def test_fsdd_tests_on_the_first_five_of_each_speaker(self, source):
        for speaker in ("george", "jackson", "theo"):
            for index in (0, 4, 5, 49):
                sound(source / "recordings" / f"7_{speaker}_{index}.wav", 8000)
        corpus, found = read("fsdd", source)
        assert corpus.summary()["split"] == {"test": 6, "train": 6}
        assert found["7_theo_4"].split == "test"
        assert found["7_theo_5"].split == "train"
        assert {u.text for u in found.values()} == {"seven"}
        assert split_speakers(corpus)["test"] == {"george", "jackson", "theo"}

    def test_a_name_or_code_that_does_not_fit_is_named(self, source):
        sound(source / "wav" / "03a01Xa.wav")
        with pytest.raises(DataError, match=r"03a01Xa\.wav: found emotion 'X' .* one of W, L, E"):
            read("emodb", source)
        (source / "wav" / "03a01Xa.wav").rename(source / "wav" / "noise.wav")
        with pytest.raises(
            DataError, match=r"noise\.wav: expected the name <speaker><text><emotion><take>;"
        ):
            read("emodb", source)


def test_librispeech_parts_are_pooled_unless_chosen(source):
    parts = {"train-clean-100": 1, "dev-clean": 2, "test-clean": 3, "test-other": 4}
    for part, number in parts.items():
        for speaker in (f"{number}03", f"{number}04"):
            names = [f"{speaker}-1240-{i:04d}" for i in range(2)]
            lines = [f"{name} CHAPTER ONE" for name in names]
            text(source / part / speaker / "1240" / f"{speaker}-1240.trans.txt", *lines)
            for name in names:
                sound(source / part / speaker / "1240" / f"{name}.flac")
    text(source / "SPEAKERS.TXT", "; ID |SEX| SUBSET |MINUTES| NAME")
    corpus, found = read("librispeech", source)
    assert corpus.summary()["split"] == {"dev": 4, "test": 8, "train": 4}
    one = found["203-1240-0001"]
    assert (one.text, one.speaker, one.language, one.split) == ("CHAPTER ONE", "203", "en", "dev")
    assert one.duration == pytest.approx(0.1)
    assert split_speakers(corpus)["dev"] == {"203", "204"}
    chosen = {"part": ["train-clean-100", "dev-clean", "test-clean"]}
    corpus, _ = read("librispeech", source, only=chosen)
    assert corpus.summary()["split"] == {"dev": 4, "test": 4, "train": 4}
    text(source / "dev-clean" / "203" / "1240" / "203-1240.trans.txt", "203-1240-0000")
    with pytest.raises(DataError, match=r"203-1240\.trans\.txt, line 1: .* an utterance and its"):
        read("librispeech", source)


@pytest.mark.parametrize("folders", [("wav", "wav"), ("dev/wav", "test/wav")])
def test_voxceleb1_tests_on_the_speakers_of_its_official_trials(source, folders):
    for speaker in ("id10001", "id10002", "id10003", "id10270", "id10271"):
        folder = source / folders[speaker > "id10269"] / speaker
        for video in ("5r0dWxy17C8", "x6uYqmx31kE"):
            sound(folder / video / "00001.wav")
    one, other = "id10270/5r0dWxy17C8/00001.wav", "id10270/x6uYqmx31kE/00001.wav"
    text(source / "veri_test.txt", f"1 {one} {other}", f"0 {one} id10271/x6uYqmx31kE/00001.wav")
    corpus, found = read("voxceleb1", source)
    assert len(found) == 10
    assert [(t.enrolment, t.test, t.same) for t in corpus.trials] == [
        ("id10270/5r0dWxy17C8/00001", "id10270/x6uYqmx31kE/00001", True),
        ("id10270/5r0dWxy17C8/00001", "id10271/x6uYqmx31kE/00001", False),
    ]
    speakers = split_speakers(corpus)
    assert speakers["test"] == {"id10270", "id10271"}
    assert speakers["train"] | speakers["dev"] == {"id10001", "id10002", "id10003"}
    (source / "veri_test.txt").unlink()
    with pytest.raises(DataError, match=r"has no veri_test\.txt; found .*; expected wav/id10001"):
        read("voxceleb1", source)


def test_fluent_commands_have_three_slots_and_an_intent(source):
    header = ",path,speakerId,transcription,action,object,location"
    for split in ("train", "valid", "test"):
        lines = [header]
        for i in range(2):
            path = f"wavs/speakers/{split}{i}/{split}-4474-{i}.wav"
            sound(source / path)
            lines.append(
                f'{i},{path},{split}{i},"Bedroom, heat up",increase,heat,bedroom'
                if i
                else f"{i},{path},{split}{i},Pause the music,deactivate,music,none"
            )
        text(source / "data" / f"{split}_data.csv", *lines)
    corpus, found = read("fluent_commands", source)
    assert corpus.summary()["split"] == {"dev": 2, "test": 2, "train": 2}
    one = found["valid-4474-1"]
    assert (one.text, one.speaker, one.split) == ("Bedroom, heat up", "valid1", "dev")
    slots = {"action": "increase", "object": "heat", "location": "bedroom"}
    assert one.extra == {**slots, "intent": "increase heat bedroom"}
    assert found["test-4474-0"].label("location") == "none"
    assert split_speakers(corpus)["dev"] == {"valid0", "valid1"}
    text(source / "data" / "test_data.csv", ",path,speakerId,transcription,action")
    with pytest.raises(DataError, match=r"test_data\.csv has no column location, object, found"):
        read("fluent_commands", source)


class TestIEMOCAP:
    LABELS = ("neu", "hap", "exc", "ang", "sad", "fru", "xxx")

    def tree(self, source):
        for session in range(1, 6):
            dialog = f"Ses0{session}F_impro01"
            names = [f"{dialog}_{'FM'[i % 2]}{i:03d}" for i in range(len(self.LABELS))]
            root = source / f"Session{session}"
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for name, label in zip(names, self.LABELS, strict=True):
                lines += [
                    f"[6.2901 - 8.2357]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]",
                    "C-E2:\tNeutral;\t()",
                    "A-E3:\tval 3; act 2; dom  2;\t()",
                    "",
                ]
                sound(root / "sentences" / "wav" / dialog / f"{name}.wav")
            text(root / "dialog" / "EmoEvaluation" / f"{dialog}.txt", *lines)
            text(root / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialog}_e2_cat.txt", "x")
            spoken = [f"{name} [006.2901-008.2357]: Excuse me: now." for name in names]
            text(root / "dialog" / "transcriptions" / f"{dialog}.txt", *spoken, "F: (laughs)")
        return source

    def test_four_classes_with_excited_as_happy(self, source):
        corpus, found = read("iemocap", self.tree(source))
        assert len(found) == 35
        assert corpus.summary()["emotion"] == {"angry": 5, "happy": 10, "neutral": 5, "sad": 5}
        assert corpus.summary()["speakers"] == 10
        excited, frustrated = found["Ses03F_impro01_F002"], found["Ses03F_impro01_M005"]
        assert (excited.emotion, excited.text) == ("happy", "Excuse me: now.")
        assert excited.extra == {"session": "3", "annotation": "exc"}
        assert (frustrated.emotion, frustrated.speaker) == (None, "Ses03M")
        assert frustrated.extra["annotation"] == "fru"

    @pytest.mark.parametrize("session", range(1, 6))
    def test_a_fold_is_a_session_and_development_is_another_speaker(self, source, session):
        corpus, _ = read("iemocap", self.tree(source))
        pair = {f"Ses0{session}F", f"Ses0{session}M"}
        choice = {} if session == 1 else {"test_speakers": tuple(pair)}  # the first is the default
        found = split_speakers(corpus, **choice)
        assert found["test"] == pair
        assert not (found["train"] | found["dev"]) & pair

    def test_files_without_labels_or_words_are_named(self, source):
        self.tree(source)
        dialog = source / "Session2" / "dialog"
        text(dialog / "EmoEvaluation" / "Ses02F_impro01.txt", "nothing here")
        with pytest.raises(DataError, match=r"Ses02F_impro01\.txt: found no line .* LABEL"):
            read("iemocap", source)
        (dialog / "transcriptions" / "Ses02F_impro01.txt").unlink()
        with pytest.raises(DataError, match="has no Session2/dialog/transcriptions/Ses02F"):
            read("iemocap", source)


class TestMLSUPERB:
    def tree(self, source):
        counts = {"1h_train": range(4), "10min_train": range(1, 2)}
        counts |= {"10min_dev": range(4, 6), "10min_test": range(6, 7)}
        for folder, first in (("mls/eng", 0), ("mls/deu", 0), ("fleurs/lit", 96)):
            stem = folder.replace("/", "_")
            for name, numbers in counts.items():
                lines = [f"{stem}_{first + i:06d} 0.100 Hello, [the] world" for i in numbers]
                text(source / folder / f"transcript_{name}.txt", *lines)
            for i in range(first, first + 7):
                sound(source / folder / "wav" / f"{stem}_{i:06d}.wav")
        return source

    def test_an_hour_or_ten_minutes_to_train_on(self, source):
        corpus, found = read("ml_superb", self.tree(source))
        assert corpus.summary()["split"] == {"dev": 6, "test": 3, "train": 9}
        assert corpus.summary()["language"] == {"deu": 7, "eng": 7, "lit": 4}
        one = found["fleurs_lit_000100"]
        assert (one.text, one.split, one.speaker) == ("Hello, [the] world", "dev", None)
        assert one.extra == {"dataset": "fleurs", "few_shot": "yes"}
        corpus, found = read("ml_superb_10min", source)
        assert corpus.summary()["split"] == {"dev": 6, "test": 3, "train": 3}
        assert found["mls_eng_000001"].split == "train"

    def test_few_shot_languages_train_on_the_five_that_the_benchmark_chose(self, source):
        corpus, _ = read("ml_superb", self.tree(source), only={"language": ["lit"]})
        assert [u.id for u in corpus.utterances if u.split == "train"] == ["fleurs_lit_000097"]
        chosen = Counter(name.split("_")[1] for name in ml_superb._CHOSEN)
        assert set(chosen.values()) == {5}
        assert len(chosen) == 20

    def test_one_language_of_one_data_set(self, source):
        chosen = {"dataset": ["mls"], "language": ["eng"]}
        corpus, found = read("ml_superb", self.tree(source), only=chosen)
        assert {name[:7] for name in found} == {"mls_eng"}
        splits = split_utterances(corpus.utterances, SplitRecipe(), "here")
        assert [len(splits[s]) for s in ("train", "dev", "test")] == [4, 2, 1]

    def test_a_missing_list_is_named(self, source):
        (self.tree(source) / "mls" / "deu" / "transcript_1h_train.txt").unlink()
        with pytest.raises(DataError, match=r"has no mls/deu/transcript_1h_train\.txt; found"):
            read("ml_superb", source)


class TestWrongTrees:
    @pytest.mark.parametrize("corpus", sorted(READERS))
    def test_what_was_found_and_expected_is_said(self, corpus, source):
        with pytest.raises(DataError, match=r"found nothing; expected .*; name the folder that"):
            read(corpus, source)
        with pytest.raises(DataError, match=r"no folder at .*nowhere; name the one that holds"):
            read(corpus, source / "nowhere")

    def test_one_folder_too_high_is_hinted(self, source):
        sound(source / "EmoDB" / "wav" / "03a01Fa.wav")
        with pytest.raises(DataError, match=r"found EmoDB; .* perhaps .*EmoDB$"):
            read("emodb", source)

    def test_hidden_files_are_no_recordings(self, source):
        sound(source / "wav" / "03a01Fa.wav")
        text(source / "wav" / "._03a01Fa.wav", "left by a Mac")
        assert list(read("emodb", source)[1]) == ["03a01Fa"]


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(cli.app, ["prepare", *map(str, arguments)])

    def test_a_corpus_by_name_goes_where_it_is_told(self, source, tmp_path, monkeypatch):
        monkeypatch.setenv("SPEECHFUSE_CORPORA", str(tmp_path / "corpora"))
        for name in ("03a01Fa", "08a01Wa", "08a02Na"):
            sound(source / "wav" / f"{name}.wav")
        assert "utterances: 3" in self.run("emodb", source).output
        assert (tmp_path / "corpora" / "emodb" / "corpus.json").is_file()
        done = self.run(
            "emodb", source, "--out", tmp_path / "x", "--only", "speaker=08", "--only", "take=a"
        )
        assert "utterances: 2" in done.output
        assert f"folder: {tmp_path / 'x'}" in done.output

    def test_every_reader_is_in_the_help(self):
        shown = self.run("--help").output
        assert [name for name in READERS if name not in shown] == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["emodv", "."], "no corpus 'emodv' .* Did you mean 'emodb'"),
            (["emodb"], "give the folder too, like: speechfuse prepare emodb FOLDER"),
            (["emodb", "SOURCE", "--only", "speaker"], "expected COLUMN=VALUE"),
            (["emodb", "SOURCE", "--only", "speakr=03"], "no column 'speakr'; .*'speaker'"),
            (["emodb", "SOURCE", "--only", "speaker=04"], "no speaker is '04'; known: 03"),
        ],
    )
    def test_errors_say_what_was_found(self, source, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        sound(source / "wav" / "03a01Fa.wav")
        arguments = [str(source) if a == "SOURCE" else a for a in arguments]
        with pytest.raises(Exception, match=message):
            CliRunner().invoke(cli.app, ["prepare", *arguments], catch_exceptions=False)


def test_an_unknown_corpus_lists_the_known_ones():
    with pytest.raises(DataError, match=r"known: .*emodb"):
        find_reader("nothing")
