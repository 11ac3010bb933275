"""Corpora as their owners ship them: tiny trees of the same layout, names and label files."""

import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

import trees
from speechfuse import cli
from speechfuse.audio import read_audio
from speechfuse.data.corpus import read_corpus
from speechfuse.data.manifests import prepare
from speechfuse.data.readers import ml_superb
from speechfuse.data.readers.table import READERS, find_reader
from speechfuse.data.splits import split_utterances
from speechfuse.errors import DataError
from speechfuse.recipe import SplitRecipe
from trees import sound, text


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
    trees.librispeech(source)
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
    trees.voxceleb1(source, folders)
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
    trees.fluent_commands(source)
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
    def test_four_classes_with_excited_as_happy(self, source):
        corpus, found = read("iemocap", trees.iemocap(source))
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
        corpus, _ = read("iemocap", trees.iemocap(source))
        pair = {f"Ses0{session}F", f"Ses0{session}M"}
        choice = {} if session == 1 else {"test_speakers": tuple(pair)}  # the first is the default
        found = split_speakers(corpus, **choice)
        assert found["test"] == pair
        assert not (found["train"] | found["dev"]) & pair

    def test_files_without_labels_or_words_are_named(self, source):
        trees.iemocap(source)
        dialog = source / "Session2" / "dialog"
        text(dialog / "EmoEvaluation" / "Ses02F_impro01.txt", "nothing here")
        with pytest.raises(DataError, match=r"Ses02F_impro01\.txt: found no line .* LABEL"):
            read("iemocap", source)
        (dialog / "transcriptions" / "Ses02F_impro01.txt").unlink()
        with pytest.raises(DataError, match="has no Session2/dialog/transcriptions/Ses02F"):
            read("iemocap", source)


class TestMLSUPERB:
    def test_an_hour_or_ten_minutes_to_train_on(self, source):
        corpus, found = read("ml_superb", trees.ml_superb(source))
        assert corpus.summary()["split"] == {"dev": 6, "test": 3, "train": 9}
        assert corpus.summary()["language"] == {"deu": 7, "eng": 7, "lit": 4}
        one = found["fleurs_lit_000100"]
        assert (one.text, one.split, one.speaker) == ("Hello, [the] world", "dev", None)
        assert one.extra == {"dataset": "fleurs", "few_shot": "yes"}
        corpus, found = read("ml_superb_10min", source)
        assert corpus.summary()["split"] == {"dev": 6, "test": 3, "train": 3}
        assert found["mls_eng_000001"].split == "train"

    def test_few_shot_languages_train_on_the_five_that_the_benchmark_chose(self, source):
        corpus, _ = read("ml_superb", trees.ml_superb(source), only={"language": ["lit"]})
        assert [u.id for u in corpus.utterances if u.split == "train"] == ["fleurs_lit_000097"]
        chosen = Counter(name.split("_")[1] for name in ml_superb._CHOSEN)
        assert set(chosen.values()) == {5}
        assert len(chosen) == 20

    def test_one_language_of_one_data_set(self, source):
        chosen = {"dataset": ["mls"], "language": ["eng"]}
        corpus, found = read("ml_superb", trees.ml_superb(source), only=chosen)
        assert {name[:7] for name in found} == {"mls_eng"}
        splits = split_utterances(corpus.utterances, SplitRecipe(), "here")
        assert [len(splits[s]) for s in ("train", "dev", "test")] == [4, 2, 1]

    def test_a_missing_list_is_named(self, source):
        (trees.ml_superb(source) / "mls" / "deu" / "transcript_1h_train.txt").unlink()
        with pytest.raises(DataError, match=r"has no mls/deu/transcript_1h_train\.txt; found"):
            read("ml_superb", source)


class TestEmilia:
    def test_shards_of_the_hub_are_unpacked_where_the_corpus_lies(self, source):
        trees.emilia(source)
        trees.emilia(source, "fr", "Emilia-YODAS", shards=1, key="_id")
        corpus, found = read("emilia", source)
        assert len(found) == 9
        assert corpus.summary()["language"] == {"de": 6, "fr": 3}
        assert corpus.source == "emilia"
        one = found["DE_B00001_S00002_W000000"]
        assert (one.text, one.speaker, one.split, one.emotion) == (
            "Satz 2.",
            "DE_B00001_S00002",
            None,
            None,
        )
        assert one.extra == {"dnsmos": "3.4", "part": "Emilia"}
        assert found["FR_B00000_S00000_W000000"].extra["phone_count"] == "7"
        assert found["FR_B00000_S00000_W000000"].extra["part"] == "Emilia-YODAS"
        assert one.audio.is_relative_to(corpus.folder / "audio")
        assert one.duration == pytest.approx(3.0, abs=0.1)
        samples = read_audio(one.audio)
        assert len(samples) == pytest.approx(48000, rel=0.05)
        assert np.abs(samples).max() == pytest.approx(0.3, abs=0.05)
        moved = corpus.folder.rename(corpus.folder.with_name("moved"))
        assert all(u.audio.is_file() for u in read_corpus(moved).utterances)

    def test_filters_leave_out_while_it_is_read(self, source):
        trees.emilia(source)
        trees.emilia(source, "fr")
        broken = source / "Emilia" / "ZH" / "ZH-B000000.tar"
        text(broken, "not opened, for its name tells the language")
        chosen = {"language": ["FR"], "min_dnsmos": 3.2, "max_hours": 6 / 3600}
        corpus, _ = read("emilia", source, filters=chosen)
        names = ["FR_B00000_S00001_W000000", "FR_B00000_S00002_W000000"]
        assert [u.id for u in corpus.utterances] == names  # 2 + 3 s; 2 more would be too many
        assert len(list((corpus.folder / "audio").rglob("*.mp3"))) == 2

    def test_the_older_layout_of_lists_and_folders(self, source):
        records = [trees.emilia_record(f"DE_B00000_S0000{i}_W000000", "de", i) for i in range(2)]
        text(source / "DE" / "DE_B00000.jsonl", *map(json.dumps, records))
        for record in records:
            path = source / "DE" / record["wav"]
            path.parent.mkdir(parents=True)
            path.write_bytes(trees.mp3(record["duration"]))
        corpus, found = read("emilia", source)
        assert list(found) == ["DE_B00000_S00000_W000000", "DE_B00000_S00001_W000000"]
        assert corpus.utterances[1].audio == path
        assert corpus.utterances[1].duration == pytest.approx(2.0, abs=0.1)

    def test_damage_is_named_and_leaves_nothing(self, source):
        tar = trees.emilia(source) / "Emilia" / "DE" / "DE-B000001.tar"
        whole = tar.read_bytes()
        tar.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"DE-B000001\.tar is no whole tar file .* download it"):
            read("emilia", source)
        text(tar, "version https://git-lfs.github.com/spec/v1")
        with pytest.raises(DataError, match=r"DE-B000001\.tar is no whole tar file"):
            read("emilia", source)
        assert not (source.parent / "corpora").exists()

    def test_a_record_without_audio_or_without_its_fields_is_named(self, source):
        text(source / "DE" / "DE_B00000.jsonl", '{"wav": "x.mp3", "text": "x"}')
        with pytest.raises(DataError, match=r"expected text, duration, speaker, language and"):
            read("emilia", source)
        (source / "DE" / "DE_B00000.jsonl").unlink()
        path = source / "DE" / "DE-B000000.tar"
        with tarfile.open(path, "w") as archive:
            trees._member(archive, "a.json", b"{}")
        with pytest.raises(DataError, match=r"a\.json has no audio beside it"):
            read("emilia", source)

    @pytest.mark.parametrize(
        ("filters", "message"),
        [
            ({"language": ["dee"]}, "no language 'dee'; .* Did you mean 'de'"),
            ({"min_dnsmos": 4.9}, r"no utterance that is wanted .*min_dnsmos 4\.9"),
            ({"max_hours": 0.0}, "ask for more"),
        ],
    )
    def test_a_filter_that_leaves_nothing_is_named(self, source, filters, message):
        with pytest.raises(DataError, match=message):
            read("emilia", trees.emilia(source), filters=filters)

    def test_other_corpora_have_no_such_filter(self, source):
        sound(source / "wav" / "03a01Fa.wav")
        with pytest.raises(DataError, match="emodb has no max_hours to choose by; use --only"):
            read("emodb", source, filters={"max_hours": 1.0})


class TestArchives:
    def test_a_manifest_may_name_members_of_tar_files(self, source):
        for place in ("one", "two"):  # of one name
            (source / place).mkdir()
            with tarfile.open(source / place / "a.tar.gz", "w:gz") as archive:
                trees._member(archive, "./x/clip.mp3", trees.mp3(1.0 if place == "one" else 2.0))
        rows = "".join(f"{p},{p}/a.tar.gz/x/clip.mp3\n" for p in ("one", "two"))
        text(source / "manifest.csv", "id,audio", rows.rstrip())
        corpus = prepare(source / "manifest.csv", source.parent / "made")
        assert [round(u.duration) for u in corpus.utterances] == [1, 2]

    def test_a_member_that_lacks_or_leads_out_is_named(self, source):
        with tarfile.open(source / "a.tar", "w") as archive:
            trees._member(archive, "../clip.mp3", trees.mp3(1.0))
        for name, message in (("b.mp3", "has no member 'b.mp3'"), ("../clip.mp3", "leads out")):
            text(source / "manifest.csv", "audio", f"a.tar/{name}")
            with pytest.raises(DataError, match=message):
                prepare(source / "manifest.csv", source.parent / "made")
            assert not (source.parent / "made").exists()

    def test_a_link_is_not_followed(self, source):
        with tarfile.open(source / "a.tar", "w") as archive:
            about = tarfile.TarInfo("b.wav")
            about.type, about.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(about)
        text(source / "manifest.csv", "audio", "a.tar/b.wav")
        with pytest.raises(DataError, match=r"a\.tar: member 'b\.wav' is no file"):
            prepare(source / "manifest.csv", source.parent / "made")


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

    def test_emilia_is_chosen_by_language_hours_and_quality(self, source, tmp_path):
        trees.emilia(source)
        given = ["--language", "de", "--max-hours", "0.001", "--min-dnsmos", "3.1"]
        done = self.run("emilia", source, "--out", tmp_path / "x", *given)
        assert "utterances: 1" in done.output

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
