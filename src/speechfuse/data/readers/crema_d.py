"""CREMA-D (Cao et al. 2014): twelve sentences by 91 actors, in six emotions.

AudioWAV/1001_DFA_ANG_XX.wav                        actor, sentence, acted emotion, level
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, labels_in_names

_NAME = r"(?P<speaker>\d{4})_(?P<text>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]{1,2})"
_EMOTIONS = {
    "ANG": "angry",
    "DIS": "disgusted",
    "FEA": "fearful",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
_LEVELS = {  # one file ends in a single X
    "LO": "low",
    "MD": "medium",
    "HI": "high",
    "XX": "unspecified",
    "X": "unspecified",
}
_TEXTS = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_FAULTY = {  # by the owner's list: without speech, cut off, or all emotions in one file
    "1064_IEO_DIS_MD",
    "1064_TIE_SAD_XX",
    "1076_MTI_NEU_XX",
    "1076_MTI_SAD_XX",
}


def read(source: Path) -> list[Row]:
    """The emotion is the acted one, not what the raters heard."""
    found = find(source, "AudioWAV/*.wav", "AudioWAV/1001_DFA_ANG_XX.wav ...")
    files = [path for path in found if path.stem not in _FAULTY]
    codes = {"emotion": _EMOTIONS, "text": _TEXTS, "level": _LEVELS}
    rows = labels_in_names(source, files, _NAME, codes)
    return [{**row, "language": "en"} for row in rows]
