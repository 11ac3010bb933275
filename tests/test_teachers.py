"""Cards of teachers: whom they have seen, by whatever name."""

import pytest

from speechfuse.data.teachers import (
    Card,
    Seen,
    canonical,
    known_models,
    read_cards,
    seen_of_names,
    write_cards,
)
from speechfuse.errors import DataError


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("AbstractTTS/IEMOCAP", "iemocap"),
        ("iemocap-session-5", "iemocap"),
        ("IEMOCAP4", "iemocap"),
        ("my_emo-db", "emodb"),
        ("confit/crema-d-full", "cremad"),
        ("MSP-Podcast_1.11", "msppodcast"),
        ("m3ed", "m3ed"),
        ("mer2023", "mer2023"),
        ("tested", "tested"),
        ("tones-2", "tones2"),
    ],
)
def test_a_corpus_is_known_by_its_owners_name(name, known):
    assert canonical(name) == known


def test_a_collection_is_all_that_is_in_it():
    assert len(seen_of_names(["Scicom-intl/EmoBox"])) == 32
    assert Seen("iemocap") in seen_of_names(["emobox"])
    assert seen_of_names(["superb", "superb"]) == (Seen("iemocap"),)


def test_what_cards_say_in_words_only_is_known():
    for name in ("emotion2vec/emotion2vec_plus_large", "someone/Emotion2Vec_plus_base-hf"):
        assert Seen("iemocap") in seen_of_names(known_models([name]))
    assert seen_of_names(known_models(["superb/hubert-large-superb-er"])) == (Seen("iemocap"),)
    assert known_models(["facebook/hubert-base-ls960", "emotion2vec/emotion2vec_base"]) == []


def test_speakers_decide_where_they_are_known():
    test = Seen("fold-3", "iemocap", ("Ses03F", "Ses03M"))
    assert Seen("IEMOCAP").speakers_of(test) == {"Ses03F", "Ses03M"}
    assert Seen("all", "iemocap", ("Ses01F", "Ses03M")).speakers_of(test) == {"Ses03M"}
    assert Seen("fold-3", None, ("Ses01F",)).speakers_of(test) == set()
    assert Seen("ravdess", None, ("Ses03F",)).speakers_of(test) == set()


def test_cards_are_kept(tmp_path):
    cards = (
        Card("a@1", "runs/a", 0.9, "emilia", (Seen("x", "iemocap", ("1", "2")), Seen("y"))),
        Card("b@2", "org/b", 0.5, "emilia", (), knows=False),
    )
    write_cards(tmp_path, cards)
    assert read_cards(tmp_path) == cards
    assert read_cards(tmp_path / "nowhere") == ()
    (tmp_path / "teachers.json").write_text('[{"name": 1}]')
    with pytest.raises(DataError, match="is damaged"):
        read_cards(tmp_path)
