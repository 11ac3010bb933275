"""Fluent Speech Commands (Lugosch et al. 2019): orders to a smart home, with their meaning.

data/train_data.csv, valid_data.csv, test_data.csv  path, speakerId, transcription, action, ...
wavs/speakers/SPEAKER/UTTERANCE.wav                 as in the column path
"""

from __future__ import annotations

import csv
from pathlib import Path

from speechfuse.data.corpus import read_lines
from speechfuse.data.readers.layout import Row, find
from speechfuse.errors import DataError

_SLOTS = ("action", "object", "location")


def read(source: Path) -> list[Row]:
    """The owner's splits share no speaker; `intent` is the three slots in one."""
    layout = "data/train_data.csv, valid_data.csv, test_data.csv and wavs/speakers/"
    rows = []
    for split in ("train", "valid", "test"):
        (table,) = find(source, f"data/{split}_data.csv", layout)
        lines = csv.DictReader(read_lines(table))
        columns = lines.fieldnames or ()
        missing = {"path", "speakerId", "transcription", *_SLOTS}.difference(columns)
        if missing:
            raise DataError(
                f"{table} has no column {', '.join(sorted(missing))}, found "
                f"{', '.join(columns)}; take the owner's file"
            )
        for line in lines:
            slots = {slot: line[slot] for slot in _SLOTS}
            rows.append(
                {
                    "audio": line["path"],
                    "text": line["transcription"],
                    "speaker": line["speakerId"],
                    "language": "en",
                    "split": split,
                    "intent": " ".join(slots.values()),
                    **slots,
                }
            )
    return rows
