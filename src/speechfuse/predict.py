"""Answers for audio files as text, JSON, CSV or subtitles."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from speechfuse.checkpoint import write_text
from speechfuse.errors import DataError, RunError
from speechfuse.pipeline.answers import Answer, Label, Speakers, Transcript, Voice, Word
from speechfuse.pipeline.recordings import of_all
from speechfuse.pipeline.speech_model import SpeechModel
from speechfuse.provenance import Provenance, run_hash
from speechfuse.tasks.verification import Verification
from speechfuse.turns import format_turns
from speechfuse.types import Progress

Format = Literal["text", "json", "csv", "srt"]
COLUMNS = ("audio", "task", "prediction", "score", "start", "end")
COMPARED = 20  # files at most, each with each other, unless it is asked for
CAPTION = (42, 6.0, 0.8)  # most characters and seconds of a caption, and the pause that ends one


def asked_tasks(
    model: SpeechModel,
    files: Sequence[Path],
    named: Sequence[str] | None,
    format: Format = "text",
    out: Path | None = None,
) -> list[str]:
    """The tasks that are named; else all, without those that compare files where pairs are many.

    Raises:
        RunError: there is no such task.
    """
    tasks = model.checked(named)
    if named or format != "text" or (out is None and len(files) <= COMPARED):
        return tasks
    return [name for name in tasks if model.tasks[name].reads != "vector"] or tasks


def check_asked(
    model: SpeechModel,
    files: Sequence[Path],
    tasks: Sequence[str],
    format: Format,
    out: Path | None = None,
    *,
    layers: bool = False,
) -> None:
    """Refuse before anything is read.

    Raises:
        RunError: layers or pairs of files that would not be written, one file alone where there
            is something to compare only, or subtitles without times of words, or of several files
            as one.
    """
    if layers and format != "json":
        raise RunError("--layers are written as JSON alone; add --format json")
    compares = [name for name in tasks if model.tasks[name].reads == "vector"]
    if compares and format == "text" and out is not None:
        raise RunError("pairs of files are printed when all are read; use --format json with --out")
    if len(files) == 1 and format == "text" and [*tasks] == compares:
        raise RunError(f"{' and '.join(tasks)} compares files; give two or more, found {files[0]}")
    if format != "srt":
        return
    if not set(tasks) & set(model.times_words):
        raise RunError(
            f"{model.folder} tells no times of words for {' or '.join(tasks)}: subtitles need a "
            "head with CTC, like {kind: ctc}, or {kind: text, ctc: 0.3}; use --format text"
        )
    if len(files) > 1 and out is None:
        raise RunError(f"subtitles of {len(files)} files are as many; add --out FOLDER")


def predict_files(
    folder: Path,
    files: Sequence[Path],
    only: Sequence[str] | None = None,
    prompt: str | None = None,
) -> Iterator[str]:
    """Lines of text for each file and task, see `text_lines`.

    Raises:
        RunError: no trained run, other weights of an upstream, no such task, or one file alone
            where there is something to compare only.
        DataError: a file that cannot be read.
    """
    model = SpeechModel(folder, tasks=only)
    tasks = asked_tasks(model, files, only)
    check_asked(model, files, tasks, "text")
    answers = model(iter(files), tasks, prompt=prompt)
    yield from text_lines(model, answers)


def text_lines(model: SpeechModel, answers: Iterable[Answer]) -> Iterator[str]:
    """One line for each file and task; verification compares every pair of files, at the end.

    A few files cannot be standardised as the many of the trials are: such a cosine is marked, and
    so is a text that was cut at its limit.
    """
    voices: dict[str, list[tuple[str, Voice]]] = {}
    for answer in answers:
        if answer.error is not None:
            yield f"{answer.name}\terror\t{answer.error}"
        for task, result in answer.results.items():
            if isinstance(result, Voice):
                voices.setdefault(task, []).append((answer.name, result))
            else:
                cut = isinstance(result, Transcript) and result.cut
                yield f"{answer.name}\t{task}\t{_text(result)}" + "\tcut at its limit" * cut
    for task, found in voices.items():
        kind = model.tasks[task]
        raw = isinstance(kind, Verification) and kind.standardize
        note = "\tnot standardised, unlike the trials" if raw else ""
        for i, (name, one) in enumerate(found):
            for other_name, other in found[i + 1 :]:
                told = one.compare(other)
                pair = f"{name}\t{other_name}\t{task}\t{told.similarity:.3f}"
                yield f"{pair}\t{told.text()}{note}"


def json_lines(answers: Iterable[Answer]) -> Iterator[str]:
    """One object for each file."""
    for answer in answers:
        yield json.dumps(answer.to_dict(), ensure_ascii=False)


def csv_lines(answers: Iterable[Answer], *, header: bool = True) -> Iterator[str]:
    """One row for each file and task, one for each turn of a speaker."""
    if header:
        yield _row(COLUMNS)
    for answer in answers:
        if answer.error is not None:
            yield _row((answer.name, "error", answer.error, "", "", ""))
        whole = ("0.000", f"{answer.duration:.3f}")
        for task, result in answer.results.items():
            if isinstance(result, Speakers):
                for turn in result.turns:
                    times = (f"{turn.start:.3f}", f"{turn.end:.3f}")
                    yield _row((answer.name, task, turn.speaker, "", *times))
                continue
            score = ""
            if isinstance(result, Label) and result.scores:
                score = f"{result.scores[result.label]:.4f}"
            yield _row((answer.name, task, _text(result), score, *whole))


def subtitles(words: Sequence[Word]) -> str:
    """SubRip: captions of a line that end at pauses."""
    captions: list[list[Word]] = []
    most, longest, pause = CAPTION
    for word in words:
        last = captions[-1] if captions else None
        if (
            last is None
            or len(" ".join(w.text for w in [*last, word])) > most
            or word.end - last[0].start > longest
            or word.start - last[-1].end > pause
        ):
            captions.append([word])
        else:
            last.append(word)
    blocks = [
        f"{number}\n{_clock(one[0].start)} --> {_clock(one[-1].end)}\n"
        + " ".join(word.text for word in one)
        + "\n"
        for number, one in enumerate(captions, 1)
    ]
    return "\n".join(blocks)


def predict_into(
    model: SpeechModel,
    files: Sequence[Path],
    tasks: Sequence[str],
    format: Format,
    out: Path | None,
    *,
    prompt: str | None = None,
    layers: bool = False,
    progress: Progress | None = None,
    wrong: Mapping[str, str] | None = None,
    failed: dict[str, str] | None = None,
    places: Mapping[Path, Path] | None = None,
) -> Iterator[str]:
    """Lines to print, or none of them if they go into `out`, which is gone on with.

    out: a file, or a folder of NAME.srt for subtitles; places: what they are called there, see
    `find_audio`; the file's name, if left out. A file that cannot be read has a line that
    says why, but among subtitles that are printed; the others have theirs, and the next call tries
    it again. wrong: what is no file, and why. failed: gets both.

    Raises:
        DataError: `out` cannot be written, or holds answers of another run, to other tasks, prompt
            or format. Audio of another size or time of change is answered anew.
    """
    check_asked(model, files, tasks, format, out, layers=layers)
    left = list(files)
    written: dict[str, Path] = {}
    made = _provenance(model, files, tasks, format, out, prompt, layers) if out else None
    if out is not None and made is not None:
        if format == "srt":
            written = _subtitle_files(out, files, places or {})
            left = _unwritten(out, files, written, made)
        else:
            holds = out.is_file() and out.stat().st_size > 0
            made.resume(out, holds=holds)
            done = _done(out, format, tasks, made) if holds else set()
            left = [path for path in files if str(path) not in done]
    heard: Iterable[Answer] = [Answer(name, 0.0, error=why) for name, why in (wrong or {}).items()]
    if left:
        told = of_all(left, progress)  # an iterator of files does not know
        asked: dict[str, Any] = {"prompt": prompt, "layers": layers, "progress": told}
        heard = chain(heard, model(iter(left), tasks, **asked, errors="keep"))
    answers = _noted(heard, {} if failed is None else failed)
    if format == "srt":
        yield from _write_subtitles(model, answers, tasks, written, made)
        return
    if out is None or made is None:
        lines = {"text": lambda: text_lines(model, answers), "json": lambda: json_lines(answers)}
        yield from lines.get(format, lambda: csv_lines(answers))()
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        if format == "csv" and file.tell() == 0:
            file.write(_row(COLUMNS) + "\n")
        for answer in answers:
            one = [answer]
            lines_of = (
                json_lines(one)
                if format == "json"
                else csv_lines(one, header=False)
                if format == "csv"
                else text_lines(model, one)
            )
            file.write("".join(f"{line}\n" for line in lines_of))  # all of a file at once
            file.flush()
            if answer.error is not None:
                yield f"{answer.name}\terror\t{answer.error}"
            else:
                made.note(answer.name, answer.name)


def _noted(answers: Iterable[Answer], failed: dict[str, str]) -> Iterator[Answer]:
    for answer in answers:
        if answer.error is not None:
            failed[answer.name] = answer.error
        yield answer


def _provenance(
    model: SpeechModel,
    files: Sequence[Path],
    tasks: Sequence[str],
    format: Format,
    out: Path,
    prompt: str | None,
    layers: bool,
) -> Provenance:
    about = {
        "run": run_hash(model.folder),
        "tasks": tasks,
        "format": format,
        "prompt": prompt,
        "layers": layers,
        "stretch": model.stretch,
    }
    path = out / ".made_by" if format == "srt" else out.with_name(f".{out.name}.made_by")
    return Provenance(path, about, files)


def _unwritten(
    out: Path, files: Sequence[Path], written: Mapping[str, Path], made: Provenance
) -> list[Path]:
    """Files without subtitles; those of audio that has changed since are removed.

    Raises:
        DataError: subtitles of other audio have the name of some that are asked.
    """
    made.resume(out, holds=any(out.rglob("*.srt")))
    for name, path in written.items():
        if not path.exists():
            continue
        key = str(path.relative_to(out))
        if made.heard(key) != name:
            other = made.heard(key) or "something else"
            raise DataError(
                f"{path} would be of {name} and is of {other}; choose another --out, or delete it"
            )
        if not made.current(key):
            path.unlink()
    return [path for path in files if not written[str(path)].exists()]


def _done(out: Path, format: Format, tasks: Sequence[str], made: Provenance) -> set[str]:
    """Files that have all their answers there; lines of others are taken out, they come anew.

    Raises:
        DataError: the file holds something else.
    """
    text = out.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]  # what was broken off has no end
    header = lines[:1] if format == "csv" else []
    found: dict[str, set[str]] = {}
    names = []
    for line in lines[len(header) :]:
        try:
            name, answered = _read_line(line, format)
        except (ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
            raise DataError(
                f"{out} holds a line that is no {format} of ours ({line[:60]!r}); choose another "
                "file for --out"
            ) from error
        names.append(name)
        found.setdefault(name, set()).update(answered)
    done = {n for n, answered in found.items() if answered >= {*tasks} and made.current(n)}
    kept = [line for name, line in zip(names, lines[len(header) :], strict=True) if name in done]
    write_text(out, "".join(f"{line}\n" for line in [*header, *kept]))
    return done


def _read_line(line: str, format: Format) -> tuple[str, set[str]]:
    """Of which file a line is, and which tasks it answers."""
    if format == "json":
        read = json.loads(line)
        return str(read["audio"]), {*read.get("results", ())}
    name, task, _, *_ = next(csv.reader([line])) if format == "csv" else line.split("\t")
    return name, {task}


def _write_subtitles(
    model: SpeechModel,
    answers: Iterable[Answer],
    tasks: Sequence[str],
    written: Mapping[str, Path],
    made: Provenance | None,
) -> Iterator[str]:
    """Into the files of `written`, by name; printed, if there are none."""
    task = next(name for name in tasks if name in model.times_words)
    for answer in answers:
        if answer.error is not None:
            if made is not None:
                yield f"{answer.name}\terror\t{answer.error}"
            continue
        result = answer[task]
        assert isinstance(result, Transcript)
        text = subtitles(result.words or [])
        if made is None:
            yield text
            continue
        path = written[answer.name]
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path.relative_to(made.path.parent)
        made.note(str(place), answer.name)  # first: none is without
        write_text(path, text)


def _subtitle_files(
    out: Path, files: Sequence[Path], places: Mapping[Path, Path]
) -> dict[str, Path]:
    """PLACE.srt by the file's name; with the place's ending where two differ in nothing else.

    Raises:
        DataError: two files of one place.
    """
    place = {path: places.get(path, Path(path.name)) for path in files}
    shared = Counter(one.with_suffix("") for one in place.values())
    of: dict[Path, Path] = {}
    for path, one in place.items():
        name = f"{one.name if shared[one.with_suffix('')] > 1 else one.stem}.srt"
        other = of.setdefault(out / one.with_name(name), path)
        if other != path:
            raise DataError(
                f"{other} and {path} would both be {out / one.with_name(name)}; name the folder "
                "that holds both, or give each an --out of its own"
            )
    return {str(path): written for written, path in of.items()}


def _text(result: Transcript | Label | Voice | Speakers) -> str:
    if isinstance(result, Transcript):
        return result.text
    if isinstance(result, Label):
        return result.label
    if isinstance(result, Speakers):
        return format_turns(result.turns)
    return " ".join(f"{x:.6f}" for x in result.vector)


def _row(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _clock(seconds: float) -> str:
    """Of SubRip: 00:01:02,345."""
    whole = round(1000 * seconds)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"
