"""IEMOCAP (Busso et al. 2008): ten actors in five sessions of two, acted and improvised.

Session1/dialog/EmoEvaluation/Ses01F_impro01.txt    `[6.29 - 8.23]  Ses01F_impro01_F000  neu  [...]`
Session1/dialog/transcriptions/Ses01F_impro01.txt   `Ses01F_impro01_F000 [006.29-008.23]: Hello.`
Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav
"""

from __future__ import annotations

import re
from pathlib import Path

from speechfuse.data.readers.layout import Row, find
from speechfuse.errors import DataError

# SUPERB's four classes, 5531 utterances; happy and excited are one. Others have no emotion.
_EMOTIONS = {"ang": "angry", "exc": "happy", "hap": "happy", "neu": "neutral", "sad": "sad"}
_LABEL = re.compile(r"^\[[\d.]+ - [\d.]+\]\s+(\w+)\s+(\w+)", re.MULTILINE)
_TEXT = re.compile(r"^(\w+) \[[^\]]*\]: *(.*?)\s*$", re.MULTILINE)


def read(source: Path) -> list[Row]:
    """The test set is Session 1, SUPERB's first fold; for another name both its speakers.

    `annotation` is the owner's label of every utterance, `session` 1 to 5.
    """
    layout = "Session1/dialog/EmoEvaluation, dialog/transcriptions and sentences/wav, to Session5"
    rows = []
    for labels in find(source, "Session*/dialog/EmoEvaluation/Ses*.txt", layout):
        session, dialog = labels.relative_to(source).parts[0], labels.stem
        (words,) = find(source, f"{session}/dialog/transcriptions/{dialog}.txt", layout)
        texts = dict(_TEXT.findall(_ascii(words)))
        found = _LABEL.findall(_ascii(labels))
        if not found:
            raise DataError(
                f"{labels}: found no line '[START - END] UTTERANCE LABEL'; take the owner's file"
            )
        for name, label in found:
            row = {
                "audio": f"{session}/sentences/wav/{dialog}/{name}.wav",
                "speaker": name[:5] + name.split("_")[-1][0],  # Ses01 and F or M who speaks
                "language": "en",
                "split": "test" if session == "Session1" else "train",
                "session": session.removeprefix("Session"),
                "annotation": label,
            }
            if label in _EMOTIONS:
                row["emotion"] = _EMOTIONS[label]
            if name in texts:
                row["text"] = texts[name]
            rows.append(row)
    return rows


def _ascii(path: Path) -> str:
    return path.read_text(encoding="latin-1")  # the labels are ASCII, raters' remarks may not be
