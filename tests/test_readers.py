"""Corpora as their owners ship them: tiny trees of the same layout, names and label files."""

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.data.manifests import prepare
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

    def test_crema_d_without_the_file_that_holds_no_speech(self, source):
        for actor in (1001, 1002, 1003, 1076):
            sound(source / "AudioWAV" / f"{actor}_MTI_SAD_XX.wav")
            sound(source / "AudioWAV" / f"{actor}_IEO_ANG_HI.wav")
        sound(source / "AudioWAV" / "1040_ITH_SAD_X.wav")
        corpus, found = read("crema_d", source)
        assert len(found) == 8
        assert "1076_MTI_SAD_XX" not in found
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
