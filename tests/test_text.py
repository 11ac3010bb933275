import pytest

from speechfuse.errors import DataError
from speechfuse.text import Characters, normalise_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   World! ", "hello world"),
        ("it\u2019s FINE", "it's fine"),
        ("\u00dcber-Gr\u00f6\u00dfe", "\u00fcber gr\u00f6\u00dfe"),
        ("\u65e5\u672c\u8a9e\u3002", "\u65e5\u672c\u8a9e"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("room 12", "room 12"),
    ],
)
def test_normaliser_keeps_letters_of_any_script(text, expected):
    assert normalise_text(text) == expected
    assert normalise_text(expected) == expected


def test_characters_come_back():
    characters = Characters.of(["hello world", "abc"])
    assert len(characters) == 1 + len(set("hello world abc"))
    ids = characters.encode("cold bell")
    assert 0 not in ids
    assert characters.decode([0, *ids, 0]) == "cold bell"


def test_an_unknown_character_is_named():
    with pytest.raises(DataError, match=r"\['z'\]"):
        Characters.of(["abc"]).encode("zab")
