"""VoxCeleb1 (Nagrani et al. 2017) with the official trials, VoxCeleb1-O.

wav/id10270/x6uYqmx31kE/00001.wav                   speaker, video, clip; or in dev/wav and test/wav
veri_test.txt                                       lines `1 id10270/.../00001.wav id10270/...`
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, split_lines

TRIALS = "veri_test.txt"


def read(source: Path) -> list[Row]:
    """The speakers of the trials are the test set, all others are trained on."""
    layout = f"wav/id10001/VIDEO/00001.wav ... (or in dev/ and test/) and {TRIALS}"
    within = "wav" if (source / "wav").is_dir() else "*/wav"
    files = find(source, f"{within}/id*/*/*.wav", layout)
    (trials,) = find(source, TRIALS, layout)
    pairs = split_lines(trials, 3, "1 or 0 and two audio paths")
    tested = {path.split("/")[0] for _, *both in pairs for path in both}
    return [
        {
            "id": "/".join((*path.parts[-3:-1], path.stem)),
            "audio": str(path.relative_to(source)),
            "speaker": path.parts[-3],
            "split": "test" if path.parts[-3] in tested else "train",
        }
        for path in files
    ]
