"""Synthetic speech to pretrain on: words in random order, voices and seeds of its own.

    python scripts/pretrain/speech.py --hours 20 --out pretrain-data

Writes clean.i16 and noisy.i16 (16 kHz int16, all utterances end to end) and utterances.jsonl with
start, length, text, speaker and emotion. Needs the packages espeakng-loader and wordfreq. No
voice, seed or sentence of the synthetic corpus is used: voices are drawn from other seeds, and a
row of random words is not a sentence of its grammar.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soxr
from wordfreq import top_n_list

from speechfuse.data.synthetic import acoustics, espeak, voices

SEED = 20251108  # the corpus draws its voices from seeds below 1,000
PART = 500  # utterances made together


def words() -> list[str]:
    """Common English words in plain letters."""
    return [w for w in top_n_list("en", 9000) if w.isascii() and w.isalpha() and len(w) < 14]


def make_part(part: int, folder: Path) -> Path:
    """PART utterances of 20 speakers who exist in this part only."""
    random = np.random.default_rng([SEED, part])
    speakers = [voices.draw_speaker(f"p{part}x{i}", random) for i in range(20)]
    known = words()
    # Between equal and natural frequency, so that rare words are learned and common ones lead.
    chance = 1 / np.arange(5, len(known) + 5) ** 0.5
    jobs: list[espeak.Job] = []
    rows: list[dict[str, str | int]] = []
    for index in range(PART):
        speaker = speakers[index * len(speakers) // PART]  # one after the other
        emotion = voices.EMOTIONS[random.integers(len(voices.EMOTIONS))]
        prosody = voices.draw_prosody(emotion, 1.0, random)
        spoken = random.choice(known, size=random.integers(3, 11), p=chance / chance.sum())
        text = " ".join(spoken)
        jobs.append(voices.job(text, speaker, prosody, random))
        rows.append({"text": text, "speaker": speaker.name, "emotion": emotion})
    clean, noisy = [], []
    made = espeak.synthesise(jobs, {s.name: s.variant for s in speakers})
    for row, samples in zip(rows, made, strict=True):
        speech = soxr.resample(samples.astype(np.float32) / 32768, espeak.SAMPLE_RATE, 16000)
        heard = acoustics.record(speech, 16000, random)
        row["length"] = len(speech)
        clean.append((speech * 32767).clip(-32768, 32767).astype("<i2"))
        noisy.append((heard * 32767).astype("<i2"))
    path = folder / f"part-{part:04d}.npz"
    np.savez(path, clean=np.concatenate(clean), noisy=np.concatenate(noisy), rows=json.dumps(rows))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=20.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = start = 0
    with (
        ProcessPoolExecutor(options.workers) as pool,
        (options.out / "clean.i16").open("wb") as clean,
        (options.out / "noisy.i16").open("wb") as noisy,
        (options.out / "utterances.jsonl").open("w") as lines,
    ):
        parts = round(options.hours * 3600 / (PART * 2.8))
        for path in pool.map(partial(make_part, folder=options.out), range(parts)):
            with np.load(path) as part:
                clean.write(part["clean"].tobytes())
                noisy.write(part["noisy"].tobytes())
                for row in json.loads(str(part["rows"])):
                    lines.write(json.dumps({"start": start, **row}) + "\n")
                    start += row["length"]
                    seconds = start / 16000
            path.unlink()
            print(f"{seconds / 3600:.2f} h", flush=True)


if __name__ == "__main__":
    main()
