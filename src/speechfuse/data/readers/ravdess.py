"""RAVDESS (Livingstone & Russo 2018), audio-only speech: two sentences by 24 actors.

Actor_12/03-01-06-01-02-01-12.wav   audio only, speech, emotion, intensity, sentence, take, actor
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, labels_in_names

_NAME = (
    r"03-01-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<text>\d\d)-(?P<take>\d\d)-(?P<speaker>\d\d)"
)
_EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgusted",
    "08": "surprised",
}
_TEXTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
_INTENSITIES = {"01": "normal", "02": "strong"}


def read(source: Path) -> list[Row]:
    """Songs and films that lie beside the speech are left out."""
    files = find(source, "Actor_*/03-01-*.wav", "Actor_01/03-01-01-01-01-01-01.wav ...")
    codes = {"emotion": _EMOTIONS, "text": _TEXTS, "intensity": _INTENSITIES}
    return [
        {**row, "language": "en", "gender": "male" if int(row["speaker"]) % 2 else "female"}
        for row in labels_in_names(source, files, _NAME, codes)
    ]
