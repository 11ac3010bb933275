"""LibriSpeech (Panayotov et al. 2015), all parts that are there, the small ones of OpenSLR 31 too.

train-clean-100/103/1240/103-1240.trans.txt         lines `103-1240-0000 CHAPTER ONE ...`
train-clean-100/103/1240/103-1240-0000.flac         speaker, chapter, utterance
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, split_lines


def read(source: Path) -> list[Row]:
    """Parts are pooled by their first word: name one test set with --only part=..."""
    layout = "train-clean-100/103/1240/103-1240.trans.txt ..., and dev- and test- parts alike"
    rows = []
    for transcripts in find(source, "*-*/*/*/*.trans.txt", layout):
        folder = transcripts.parent.relative_to(source)
        part, speaker, _ = folder.parts
        for name, text in split_lines(transcripts, 2, "an utterance and its words"):
            rows.append(
                {
                    "audio": str(folder / f"{name}.flac"),
                    "text": text,
                    "speaker": speaker,
                    "language": "en",
                    "split": part.partition("-")[0],
                    "part": part,
                }
            )
    return rows
