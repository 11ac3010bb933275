"""Free Spoken Digit Dataset (Jackson et al.): ten digits, 50 times by each of six speakers.

recordings/7_jackson_32.wav                         digit, speaker, index
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, labels_in_names

_NAME = r"(?P<text>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)"
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEST = 5  # the owner tests on index 0 to 4 of the speakers who are trained on


def read(source: Path) -> list[Row]:
    """The owner's test set; name test_speakers in the recipe to test on unheard ones."""
    files = find(source, "recordings/*.wav", "recordings/0_george_0.wav ...")
    digits = {str(digit): word for digit, word in enumerate(_WORDS)}
    rows = labels_in_names(source, files, _NAME, {"text": digits})
    return [
        {**row, "language": "en", "split": "test" if int(row["index"]) < _TEST else "train"}
        for row in rows
    ]
