"""Import what people have: manifests, Kaldi folders, and corpora as their owners ship them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from speechfuse.audio import open_sound
from speechfuse.data.archives import member_of, unpack
from speechfuse.data.corpus import (
    Corpus,
    check_replaceable,
    read_corpus,
    read_lines,
    read_trials,
    replacing,
    write_corpus,
)
from speechfuse.data.joining import join_clips
from speechfuse.data.mixing import mix_speakers
from speechfuse.data.readers.layout import Reader
from speechfuse.data.teachers import read_cards
from speechfuse.errors import DataError, did_you_mean
from speechfuse.types import Progress, Utterance

COLUMNS = (
    "id",
    "audio",
    "start",
    "duration",
    "text",
    "speaker",
    "emotion",
    "language",
    "split",
)
NAMED = 20  # of what is wrong in one file; of the rest it is said how many there are
_ENCODING = "utf-8-sig"  # Excel puts a byte order mark before the first column's name
_SAME_AS = {"path": "audio", "file": "audio"}
SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}


class _TSV(csv.excel_tab):
    """A TSV file has no quotes: a text may hold a single one."""

    quoting = csv.QUOTE_NONE


def prepare(
    source: Path,
    folder: Path,
    *,
    reader: Reader | None = None,
    filters: Mapping[str, object] | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    trials: Path | None = None,
    name: str | None = None,
    join: int = 1,
    mix: int = 1,
    progress: Progress | None = None,
) -> Corpus:
    """Import a manifest, a Kaldi folder or what `reader` reads into a corpus folder.

    filters: what the reader leaves out while it reads.
    only: keep the utterances that have one of these values in a column.
    join: put so many clips of a speaker one after the other into new audio files, with their
    texts, to make connected speech of single words.
    mix: put turns of so many speakers of one split into new audio files, for diarization.

    A manifest has the columns id, audio, start, duration, text, speaker, emotion, language,
    split; all but audio may be missing, others are kept. Audio paths are relative to it; one that
    leads into a tar file, like a.tar/b.mp3, is unpacked into the corpus folder.

    Raises:
        DataError: unreadable rows, or all rows with missing or empty audio, spans outside their
            file and the like; or the folder holds something that is no corpus of ours.
    """
    check_replaceable(folder)
    if filters and not (reader and set(filters) <= set(reader.filters)):
        raise DataError(
            f"{reader.name if reader else source} has no {' and no '.join(filters)} to choose by; "
            "use --only COLUMN=VALUE"
        )
    if reader:
        rows = reader.read(source, **filters or {})
    elif not source.exists():
        raise DataError(
            f"no file or folder at {source}, expected a manifest or a Kaldi folder; check the "
            "path, and of a corpus by name give the folder too, like: speechfuse prepare emodb "
            "FOLDER"
        )
    else:
        rows = _kaldi_rows(source) if source.is_dir() else _manifest_rows(source)
    for column, values in (only or {}).items():
        rows = _chosen(rows, column, values, source)
    if not rows:
        raise DataError(f"{source} has no utterances")
    base = source if source.is_dir() else source.parent
    cards = () if reader else read_cards(base)
    known = reader.name if reader else next((card.labelled for card in cards), None)
    name = name or folder.resolve().name
    empty = Corpus(name, folder, (), source=known, teachers=cards)
    own = source / reader.trials if reader and reader.trials else None
    pairs = trials or own or trials_beside(source)
    if any(member_of(base, row.get("audio", "")) for row in rows):
        if join > 1 or mix > 1:
            raise DataError(
                f"{source}: audio lies in tar files; prepare it first, then join or mix"
            )
        with replacing(folder) as out:
            rows = unpack(rows, base, out / "audio", progress)
            corpus, rates = _filled(empty, rows, source, pairs, progress)
            write_corpus(replace(corpus, folder=out), rates)
        return read_corpus(folder)
    corpus, rates = _filled(empty, rows, source, pairs, progress)
    if join > 1 or mix > 1:
        return rearranged(corpus, join=join, mix=mix, progress=progress)
    with replacing(folder) as out:
        write_corpus(replace(corpus, folder=out), rates)
    return corpus


def _filled(
    corpus: Corpus,
    rows: Sequence[dict[str, str]],
    source: Path,
    trials: Path | None,
    progress: Progress | None,
) -> tuple[Corpus, dict[Path, tuple[int, int, int]]]:
    """The corpus with its utterances and trials, and sample rate and size of each audio file."""
    base = source if source.is_dir() else source.parent
    rates: dict[Path, tuple[int, int, int]] = {}
    utterances, wrong = [], []
    for number, row in enumerate(rows):
        try:
            utterances.append(_utterance(row, base, f"{source}, utterance {number + 1}", rates))
        except DataError as error:
            wrong.append(str(error))
        if progress:
            progress("audio files checked", number + 1, len(rows))
    for name, count in Counter(u.id for u in utterances).items():
        if count > 1:
            wrong.append(f"{source}: the id '{name}' stands for {count} utterances")
    _refuse(wrong, source)
    inside = next((path for path in rates if path.is_relative_to(corpus.folder.resolve())), None)
    if inside:
        raise DataError(
            f"{inside} lies in {corpus.folder}, which is to be replaced; choose another --out"
        )
    pairs = read_trials(trials, utterances) if trials else ()
    return replace(corpus, utterances=tuple(utterances), trials=pairs), rates


def _refuse(wrong: Sequence[str], source: Path) -> None:
    """Raises DataError if anything is wrong: a line for each, the first ones of many."""
    if len(wrong) > NAMED:
        wrong = [*wrong[:NAMED], f"{source}: {len(wrong) - NAMED:,} more like these"]
    if wrong:
        raise DataError("\n".join(wrong))


def rearranged(
    corpus: Corpus, *, join: int = 1, mix: int = 1, progress: Progress | None = None
) -> Corpus:
    """New utterances of a corpus's clips in `corpus.folder`: clips joined, or speakers mixed.

    Raises:
        DataError: both are asked for, or there are too few clips.
    """
    if join > 1 and mix > 1:
        raise DataError(f"join {join} and mix {mix}: the one or the other; mix what was joined")
    if mix > 1:
        return mix_speakers(corpus, mix, progress)
    return join_clips(corpus, join, progress)


def manifest_name(path: Path) -> str:
    """What a corpus is called after its manifest."""
    return path.parent.resolve().name if path.stem == "manifest" else path.stem


def trials_beside(manifest: Path) -> Path | None:
    """The trials that come with a manifest unless others are named: trials.tsv in its folder."""
    path = manifest.parent / "trials.tsv"
    return path if manifest.is_file() and path.is_file() else None


def _chosen(
    rows: list[dict[str, str]], column: str, values: Collection[str], source: Path
) -> list[dict[str, str]]:
    """Rows with one of these values.

    Raises:
        DataError: no row has the column, or one of the values.
    """
    columns = {name for row in rows for name in row}
    if rows and column not in columns:
        raise DataError(f"{source} has no column '{column}'; {did_you_mean(column, columns)}")
    known = {row[column] for row in rows if column in row}
    for value in values:
        if value not in known:
            raise DataError(f"{source}: no {column} is '{value}'; {did_you_mean(value, known)}")
    return [row for row in rows if row.get(column) in values]


def _manifest_rows(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".jsonl":
        rows = _json_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        rows = _table_rows(path, _TSV if path.suffix == ".tsv" else csv.excel)
    else:
        raise DataError(f"{path} ends in '{path.suffix}'; a manifest is .csv, .tsv or .jsonl")
    rows = [{_SAME_AS.get(k, k): v for k, v in row.items()} for row in rows]
    if rows and not any("audio" in row for row in rows):
        raise DataError(
            f"{path} has no column 'audio' (or 'path'), found {sorted(rows[0])}; give that name to "
            "the column of files"
        )
    return rows


def _json_rows(path: Path) -> list[dict[str, str]]:
    rows, wrong = [], []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            rows += [_json_row(line, f"{path}, line {number}")] if line.strip() else []
        except DataError as error:
            wrong.append(str(error))
    _refuse(wrong, path)
    return rows


def _json_row(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: found '{line[:60]}', expected JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found '{line[:60]}', expected {{\"audio\": ...}}")
    return {k: str(v) for k, v in row.items() if v is not None}


def _table_rows(path: Path, dialect: type[csv.Dialect]) -> list[dict[str, str]]:
    rows, wrong = [], []
    try:
        with path.open(newline="", encoding=_ENCODING) as file:
            reader = csv.DictReader(file, dialect=dialect)
            for row in reader:
                if None in row:  # else a text would be cut off at its first comma
                    wrong.append(
                        f"{path}, line {reader.line_num}: more fields than columns; in a .csv put "
                        "quotes around a text with a comma"
                    )
                rows.append({k: v for k, v in row.items() if k and v})
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    _refuse(wrong, path)
    return rows


def _kaldi_rows(folder: Path) -> list[dict[str, str]]:
    """wav.scp with segments, text, utt2spk, utt2emotion, utt2lang and utt2split where they are."""
    audio = _kaldi_table(folder / "wav.scp")
    wrong = [
        f"{folder}/wav.scp: '{name}' is a command ({path[:40]}...); commands are not run, write "
        "the audio to files first (wav-copy scp:wav.scp ...)"
        for name, path in audio.items()
        if path.rstrip().endswith("|")
    ]
    _refuse(wrong, folder / "wav.scp")
    segments = folder / "segments"
    if segments.is_file():
        rows = _kaldi_segments(segments, audio)
    else:
        rows = {name: {"audio": path} for name, path in audio.items()}
    columns = {
        "text": "text",
        "utt2spk": "speaker",
        "utt2emotion": "emotion",
        "utt2emo": "emotion",
        "utt2lang": "language",
        "utt2split": "split",
    }
    for file, column in columns.items():
        if (folder / file).is_file():
            for name, value in _kaldi_table(folder / file).items():
                if name in rows:
                    rows[name][column] = value
    return [{"id": name, **row} for name, row in rows.items()]


def _kaldi_segments(path: Path, audio: dict[str, str]) -> dict[str, dict[str, str]]:
    """Lines `utterance recording start end`, in seconds."""
    rows, wrong = {}, []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            name, recording, start, end = line.split()
            duration = str(float(end) - float(start))
        except ValueError:
            wrong.append(
                f"{path}, line {number}: found '{line}', expected an utterance, its recording, "
                "start and end in seconds"
            )
            continue
        if recording in audio:
            rows[name] = {"audio": audio[recording], "start": start, "duration": duration}
        else:
            wrong.append(f"{path}, line {number}: '{recording}' is not in wav.scp")
    _refuse(wrong, path)
    return rows


def _kaldi_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise DataError(f"{path.parent} is no Kaldi folder: it has no {path.name}")
    pairs = [line.split(maxsplit=1) for line in read_lines(path) if line.strip()]
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def _utterance(
    row: dict[str, str], base: Path, where: str, rates: dict[Path, tuple[int, int, int]]
) -> Utterance:
    if not row.get("audio"):
        raise DataError(f"{where}: the audio column is empty")
    if "\0" in row["audio"]:
        raise DataError(f"{where}: the name of its audio holds a zero byte; mend the file")
    path = (base / row["audio"]).resolve()
    if path not in rates:
        rates[path] = _about(path, where)
    rate, samples, _ = rates[path]
    try:
        start = float(row.get("start", 0.0))
        duration = float(row["duration"]) if "duration" in row else None
    except ValueError as error:
        raise DataError(f"{where}: start and duration are seconds ({error})") from error
    whole = samples / rate
    if not 0 <= start < whole:
        raise DataError(f"{where}: starts at {start:g} s, {path.name} lasts {whole:.2f} s")
    rest = whole - start
    # A manifest rounds; a span that ends within 20 ms of the file's end is to the end.
    span = rest if duration is None or abs(duration - rest) < 0.02 else duration
    if not 0 < span <= rest:
        raise DataError(f"{where}: {span:g} s from {start:g} s on, {path.name} has {rest:.2f} s")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: unknown split '{split}'; {did_you_mean(split, SPLITS)}")
    return Utterance(
        id=row.get("id") or path.stem,
        audio=path,
        start=start,
        duration=span,
        text=row.get("text"),
        speaker=row.get("speaker"),
        emotion=row.get("emotion"),
        language=row.get("language"),
        split=SPLITS[split] if split else None,
        extra={k: v for k, v in row.items() if k not in COLUMNS},
    )


def _about(path: Path, where: str) -> tuple[int, int, int]:
    """Sample rate, samples and channels from a file's header."""
    if not path.is_file():
        raise DataError(f"{where}: no audio file at {path}")
    with open_sound(path, f"{path} of {where}") as sound:
        found = sound.samplerate, sound.frames, sound.channels
    if not found[1]:
        raise DataError(f"{where}: {path} holds no samples; remove it from the manifest")
    return found
