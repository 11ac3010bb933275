from pathlib import Path

import pytest

from speechfuse.tasks.rows import answers, columns, padded
from speechfuse.types import Utterance

SAID = [Utterance("a", Path("a.wav"), speaker="anna"), Utterance("b", Path("b.wav"))]


def test_an_utterance_without_a_speaker_stands_for_itself():
    rows = answers(SAID, ["one", "two"], ["won", "two"])
    assert rows[0] == {"id": "a", "speaker": "anna", "reference": "one", "prediction": "won"}
    assert columns(rows) == (["one", "two"], ["won", "two"], ["anna", "b"])


def test_an_answer_too_few_is_a_bug():
    with pytest.raises(ValueError, match="shorter"):
        answers(SAID, ["one", "two"], ["won"])


def test_targets_are_padded_and_an_empty_one_stays_a_number():
    tokens = padded([[3, 4], [], [5]])
    assert tokens.ids.tolist() == [[3, 4], [0, 0], [5, 0]]
    assert tokens.lengths.tolist() == [2, 0, 1]
    assert tokens.ids.dtype == tokens.lengths.dtype
