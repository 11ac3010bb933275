"""EMO-DB (Burkhardt et al. 2005): ten sentences in German by ten actors, in seven emotions.

wav/03a01Fa.wav                                     speaker 03, sentence a01, Freude, take a
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, labels_in_names

_NAME = r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[A-Z])(?P<take>[a-z])"
_EMOTIONS = {
    "W": "angry",
    "L": "bored",
    "E": "disgusted",
    "A": "fearful",
    "F": "happy",
    "T": "sad",
    "N": "neutral",
}
_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read(source: Path) -> list[Row]:
    """Without a split: who is tested is left to the recipe, speakers are never shared."""
    files = find(source, "wav/*.wav", "wav/03a01Fa.wav ...")
    rows = labels_in_names(source, files, _NAME, {"emotion": _EMOTIONS, "text": _TEXTS})
    return [{**row, "language": "de"} for row in rows]
