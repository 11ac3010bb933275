from pathlib import Path

import pytest

from speechfuse.errors import DataError
from speechfuse.sounds import find_audio


@pytest.fixture
def clips(workspace):
    for name in ("s6-0.wav", "s6-1.wav", "notes.txt", "more/s7-0.wav", "more/deep/s6-0.WAV"):
        (workspace / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / "clips" / name).touch()
    return Path("clips")


def test_files_folders_and_patterns_are_found_once(clips):
    found = find_audio(["clips", "clips/*.wav", "clips/s6-1.wav", "clips/notes.txt"])
    names = [path.name for path in found]
    assert names == ["s6-0.WAV", "s7-0.wav", "s6-0.wav", "s6-1.wav", "notes.txt"]
    assert len(find_audio(["clips/**/*.wav"])) == 3


def test_places_are_below_what_was_given(clips):
    assert [str(place) for place in find_audio([clips]).values()] == [
        "more/deep/s6-0.WAV",
        "more/s7-0.wav",
        "s6-0.wav",
        "s6-1.wav",
    ]
    (place,) = find_audio(["clips/more/*.wav"]).values()
    assert place == Path("s7-0.wav")
    (place,) = find_audio(["clips/mo*/*.wav"]).values()
    assert place == Path("more/s7-0.wav")
    (place,) = find_audio(["clips/more/s7-0.wav"]).values()
    assert place == Path("s7-0.wav")


def test_what_holds_no_audio_is_noted_as_long_as_something_does(clips, workspace):
    (workspace / "empty").mkdir()
    for empty in ("clips/*.flac", "empty"):
        with pytest.raises(DataError, match="holds no audio"):
            find_audio([empty])
    wrong = {}
    given = ["empty", clips, "clips/*.flac", "gone.wav"]
    assert len(find_audio(given, wrong)) == 4
    assert [*wrong] == ["empty", "clips/*.flac", "gone.wav"]
    assert wrong["gone.wav"] == "no audio file at gone.wav, found nothing; check the path"
    with pytest.raises(DataError, match="holds no audio"):
        find_audio(given)
    with pytest.raises(DataError, match=r"empty holds no audio[^\n]*\nno audio file at gone.wav"):
        find_audio(["empty", "gone.wav"], {})
