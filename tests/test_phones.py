"""Phones of a column or by a lexicon: what is read, refused and scored."""

from pathlib import Path

import pytest

from speechfuse.errors import DataError
from speechfuse.tasks.phones import Phones, read_lexicon
from speechfuse.types import Utterance

LEXICON = "CHAPTER  CH AE1 P T ER0\nONE  W AH1 N\nONE  HH W AH1 N\n\n"


def said(text=None, phones=None, name="a"):
    extra = {"phones": phones} if phones else {}
    return Utterance(id=name, audio=Path("x"), text=text, speaker="s", extra=extra)


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text(LEXICON)
    return str(path)


def test_a_column_names_the_phones():
    task = Phones()
    assert task.needs == ("phones",)
    task.fit([said(phones="B AA1 B"), said(phones="N")])
    assert task.characters.symbols == ["AA1", "B", "N"]
    targets = task.targets([said(phones="N B"), said(phones="AA1")])
    assert targets.ids.tolist() == [[3, 2], [1, 0]]
    assert targets.lengths.tolist() == [2, 1]
    fresh = Phones()
    fresh.load_state(task.state())
    rows = fresh.table([said(phones="N B"), said(phones="AA1 ZH", name="b")], [[3, 2], [1]], [])
    assert [row["reference"] for row in rows] == ["N B", "AA1 ZH"]  # scored though never trained
    assert [row["prediction"] for row in rows] == ["N B", "AA1"]
    assert task.score(rows)["per"].point() == pytest.approx(1 / 4)


def test_a_lexicon_gives_the_first_pronunciation(lexicon, tmp_path):
    task = Phones(lexicon=lexicon)
    assert task.needs == ("text",)
    assert task.phones(said("chapter one")) == ["CH", "AE1", "P", "T", "ER0", "W", "AH1", "N"]
    more = tmp_path / "more.txt"
    more.write_text("TWO T UW1\nONE X\n")
    assert read_lexicon([lexicon, str(more)])["ONE"] == ["W", "AH1", "N"]
    both = Phones(lexicon=[lexicon, str(more)])
    assert both.phones(said("ONE TWO")) == [
        "W",
        "AH1",
        "N",
        "T",
        "UW1",
    ]


def test_a_word_that_the_lexicon_lacks_is_named(lexicon, tmp_path):
    with pytest.raises(DataError, match=r"utterance a: THREE not in .*lexicon\.txt; add the word"):
        Phones(lexicon=lexicon).check([said("one three")])
    with pytest.raises(DataError, match=r"no lexicon at nowhere\.txt; expected lines"):
        Phones(lexicon="nowhere.txt").fit([said("one")])
    bad = tmp_path / "bad.txt"
    bad.write_text("ONE W AH1 N\nTWO\n")
    with pytest.raises(DataError, match=r"bad\.txt, line 2: found 'TWO', expected a word and its"):
        read_lexicon([str(bad)])
