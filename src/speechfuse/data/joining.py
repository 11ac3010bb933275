"""Connected speech from single clips: words of one speaker, one after the other."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from speechfuse.audio import SAMPLE_RATE, read_audio
from speechfuse.data.corpus import Corpus, read_corpus, replacing, write_corpus
from speechfuse.errors import DataError
from speechfuse.types import Progress, Utterance

_PAUSE = (0.05, 0.25)  # seconds between two clips
_SEED = 20251


def join_clips(corpus: Corpus, count: int, progress: Progress | None = None) -> Corpus:
    """Every clip once, `count` of one speaker and split in a row, as new files in the folder.

    Clips are drawn in a fixed random order; fewer than `count` at the end are left out.

    Raises:
        DataError: nobody has so many clips.
    """
    import soundfile

    groups: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
    for u in corpus.utterances:
        groups[u.speaker or u.id, u.split or ""].append(u)
    random = np.random.default_rng(_SEED)
    parts = []
    for members in groups.values():
        order = [members[i] for i in random.permutation(len(members))]
        parts += [order[i : i + count] for i in range(0, len(order) - count + 1, count)]
    if not parts:
        most = max(len(members) for members in groups.values())
        raise DataError(f"no speaker has {count} clips to join, at most {most}; join fewer")
    with replacing(corpus.folder) as out:
        (out / "audio").mkdir()
        utterances, about = [], {}
        for number, part in enumerate(parts):
            pieces = []
            for u in part:
                pieces.append(read_audio(u.audio, u.start, u.duration))
                pieces.append(np.zeros(int(random.uniform(*_PAUSE) * SAMPLE_RATE), np.float32))
            samples = np.concatenate(pieces[:-1])
            first = part[0]
            name = f"{first.speaker}-{number:05d}"
            path = out / "audio" / f"{name}.flac"
            soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
            about[path] = (SAMPLE_RATE, len(samples), 1)
            utterances.append(
                Utterance(
                    id=name,
                    audio=path,
                    duration=len(samples) / SAMPLE_RATE,
                    text=" ".join(u.text or "" for u in part),
                    speaker=first.speaker,
                    language=first.language,
                    split=first.split,
                )
            )
            if progress:
                progress("utterances joined", number + 1, len(parts))
        made = Corpus(corpus.name, out, tuple(utterances), source=corpus.source)
        write_corpus(made, about)
    return read_corpus(corpus.folder)
