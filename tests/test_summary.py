import re
from pathlib import Path

import pytest

from speechfuse.data.summary import DataSummary, summarise
from speechfuse.types import Utterance


def said(*speakers, seconds=1800.0):
    """Utterances of half an hour, happy and sad in turn."""
    return [
        Utterance(
            id=f"{speaker}-{i}-{len(speakers)}",
            audio=Path("a.wav"),
            speaker=speaker,
            duration=seconds,
            emotion=("happy", "sad")[i % 2],
        )
        for i, speaker in enumerate(speakers)
    ]


def test_a_split_is_counted():
    splits = {"train": said("a", "a", "b"), "dev": said("c"), "test": said("d", None)}
    train, dev, test = summarise(["x"], splits, ["emotion"]).splits.values()
    assert (train.utterances, train.hours, train.speakers, train.without_speaker) == (3, 1.5, 2, 0)
    assert train.labels == {"happy": 2, "sad": 1}
    assert dev.labels == {"happy": 1}
    assert (test.speakers, test.without_speaker) == (1, 1)


@pytest.mark.parametrize(
    ("train", "dev", "test", "apart", "warned"),
    [
        ("ab", "c", "de", "none of the 2 speakers of test is in training and development", 0),
        ("ab", "c", "bd", "1 of the 2 speakers of test are in .*, too, with 50 % of its utt", 1),
        ("ab", "c", "cccd", "1 of the 2 speakers of test .*, too, with 75 % of its utterances$", 1),
        ("ab", "b", "c", "none of the 1 speakers of test", 1),
        ("ab", "b", "b", "1 of the 1 speakers", 2),
        ("ab", "c", [None], "test has no speakers, so nobody can tell", 0),
        ("ab", "c", ["d", None], "none .*; 1 of its 2 utterances have no speaker", 0),
    ],
)
def test_speakers_of_two_splits_are_told(train, dev, test, apart, warned):
    about = summarise([], {"train": said(*train), "dev": said(*dev), "test": said(*test)}, [])
    assert re.search(apart, about.apart())
    assert len(about.warnings()) == warned
    assert DataSummary.read(about.to_dict()) == about


@pytest.mark.parametrize(
    ("dev", "told"),
    [
        ("c", "development has 1 speaker, .* its scores have no intervals; name more in split.dev"),
        ("cccd", "development has 2 speakers, .* its scores have too narrow intervals"),
        ("cdefg", None),
        ([None], None),  # each may be another voice
    ],
)
def test_few_speakers_of_development_are_told(dev, told):
    splits = {"train": said("a", "b"), "dev": said(*dev), "test": said("z")}
    found = summarise([], splits, []).few()
    assert bool(found) is bool(told)
    assert not told or re.match(told, found[0])


def test_what_was_asked_for_is_no_warning():
    splits = {"train": said("a", "b"), "dev": said("b"), "test": said("c")}
    asked = summarise([], splits, [], drawn_within_speakers=True)
    assert asked.warnings() == asked.few() == []
    same = {name: said("a", "b") for name in splits}
    assert summarise([], same, ["speaker"]).warnings() == []
    assert "names speakers" in summarise([], same, ["speaker"]).apart()
    everyone = summarise([], same, [], all_test=True)
    assert everyone.warnings() == []
    assert everyone.apart() == "nothing is trained, and test has all speakers"
