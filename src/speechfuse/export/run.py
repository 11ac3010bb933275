"""Ask an exported run: python run.py clip.wav calls/*.mp3 --task asr --task emotion

Stands in every package that `speechfuse export` writes and needs nothing of speechfuse: numpy,
soundfile, soxr and onnxruntime (or torch, for a package in torch's format), and tokenizers where
texts are pieces of words. In Python:

    from run import Package
    package = Package("folder")
    package("clip.wav", ["asr"])         # {"asr": {"text": "...", "words": [...], "cut": False}}

One recording is computed at a time. Long ones are cut at pauses into stretches of 20 s or less.
Answers are those of `speechfuse predict`, and so are the lines that they are written as.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SAMPLE_RATE = 16000  # Hz
FADE_SECONDS = 0.2  # over which a pause is looked for
END = 0  # ends a written text; the blank of CTC
PROMPT_END = 256  # behind the bytes of a prompt
FLOOR = -8.0  # log-probability below which a token is not tried in a frame
BEAMS = {"valid": 0, "cache": 2, "heard": 1}  # what a decoder goes on with: the axis of texts
COLUMNS = ("audio", "task", "prediction", "score", "start", "end")
CAPTION = (42, 6.0, 0.8)  # most characters and seconds of a caption, and the pause that ends one


class OnnxGraph:
    """A file of ONNX; only what the outputs that are asked for need is computed."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._run = onnxruntime.RunOptions()
        self._run.only_execute_path_to_fetches = True

    def __call__(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        made = self._session.run([*outputs], dict(feeds), self._run)
        return dict(zip(outputs, made, strict=True))


class TorchGraph:
    """A program of torch.export; all of its outputs are computed."""

    def __init__(self, path: Path, names: Mapping[str, Sequence[str]], threads: int) -> None:
        """names: of its inputs and outputs, in order."""
        import torch

        if not hasattr(torch.ops.speechfuse, "lstm"):
            sys.path.insert(0, str(path.parent))
            import lstm  # type: ignore[import-not-found]  # noqa: F401  the file beside this one

        if threads:
            torch.set_num_threads(threads)
        self._module: Any = torch.export.load(path).module(check_guards=False)
        self._names = names

    def __call__(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            made = self._module(*(torch.from_numpy(feeds[name]) for name in self._names["inputs"]))
        found = dict(zip(self._names["outputs"], made, strict=True))
        return {name: found[name].numpy() for name in outputs}


class Package:
    """An exported run, ready to answer."""

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        """threads: that a graph may use; 0: as many as there are cores."""
        self.folder, self._threads = Path(folder), threads
        self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        self.tasks: dict[str, dict[str, Any]] = self.config["tasks"]
        self._graphs: dict[str, OnnxGraph | TorchGraph] = {}
        self._symbols: dict[str, Any] = {}

    def __call__(
        self, audio: str | Path | Array, tasks: Sequence[str] = (), prompt: str | None = None
    ) -> dict[str, Any]:
        """What it says of a file, or of mono samples at 16 kHz, by task; times in seconds.

        prompt: in words, for a task that was trained with such.

        Raises:
            ValueError: no such task, a prompt where none was learned, or a recording that is too
                short.
        """
        samples = audio if isinstance(audio, np.ndarray) else read_audio(Path(audio))
        wanted = self.checked(tasks, prompt)
        parts: list[tuple[float, float, dict[str, Any]]] = []  # start, seconds, by task
        end = 0
        for piece in stretches(samples, self.config["stretch_seconds"]):
            begin, end = end, end + len(piece)
            if len(piece) < self.config["min_samples"]:
                if not parts:
                    raise ValueError(
                        f"{len(piece)} samples at {SAMPLE_RATE} Hz, the encoders need "
                        f"{self.config['min_samples']} for one frame"
                    )
                continue  # a breath at the end
            found = self.outputs(piece[None], np.array([len(piece)]), wanted, prompt)
            heard = {task: self._heard(task, found) for task in wanted}
            parts.append((begin / SAMPLE_RATE, len(piece) / SAMPLE_RATE, heard))
        return {
            task: self._joined(task, [(at, size, heard[task]) for at, size, heard in parts])
            for task in wanted
        }

    def checked(self, tasks: Sequence[str], prompt: str | None = None) -> list[str]:
        """The tasks that are asked; all, if none is named."""
        for task in tasks:
            if task not in self.tasks:
                raise ValueError(f"no task '{task}'; it has: {', '.join(self.tasks)}")
        wanted = list(dict.fromkeys(tasks)) or [*self.tasks]
        worded = [task for task, entry in self.tasks.items() if "prompt" in entry]
        if prompt is not None and (len(wanted) != 1 or wanted[0] not in worded):
            raise ValueError(
                f"a prompt in words asks one task that was trained with some, found "
                f"{' and '.join(wanted)}; choose from: {', '.join(worded) or 'none'}"
            )
        return wanted

    def times_words(self, task: str) -> bool:
        """Whether the words of its texts have times, which takes scores of CTC."""
        return f"{task}.log_probs" in self.tasks[task]["outputs"]

    def outputs(
        self, samples: Array, lengths: Array, tasks: Sequence[str], prompt: str | None = None
    ) -> dict[str, Array]:
        """What the graph gives for a batch (B, S), of which (B,) samples of each are its own.

        prompt: of all that have one in words, instead of the first of each.
        """
        names = [name for task in tasks for name in self.tasks[task]["outputs"]]
        short = self.config["pad_to"] - samples.shape[1]  # torch's programs refuse what is shorter
        samples = np.pad(samples, ((0, 0), (0, max(0, short))))
        feeds: dict[str, Array]
        feeds = {"samples": samples.astype(np.float32), "lengths": lengths.astype(np.int64)}
        for task, entry in self.tasks.items():
            if "prompt" in entry:
                words = entry["prompt"] if prompt is None else prompt
                feeds[f"{task}.prompt"] = np.array([*words.encode(), PROMPT_END])
        return self._graph(self.config["graph"])(feeds, names)

    def predict(self, samples: Array, tasks: Sequence[str]) -> dict[str, Any]:
        """Of one clip, by task: token ids, scores of classes (C,), a vector, or turns."""
        found = self.outputs(samples[None], np.array([len(samples)]), tasks)
        return {task: self._predicted(task, found) for task in tasks}

    def text(self, task: str, ids: Sequence[int]) -> str:
        """Token ids as text."""
        entry = self.tasks[task]
        name = entry.get("tokenizer") or entry["vocabulary"]
        if name not in self._symbols:
            self._symbols[name] = read_symbols(self.folder / name)
        known = self._symbols[name]
        if "tokenizer" in entry:
            text: str = known.decode([i for i in ids if i != END])
        elif entry["first_alone"]:
            text = known[ids[0] - 1] if ids else ""
        else:
            text = entry["between"].join(known[i - 1] for i in ids if i != END)
        return " ".join(text.split())

    def words(self, task: str, ids: Sequence[int], log_probs: Array) -> list[dict[str, Any]]:
        """Words of a text where CTC aligns them, each from its first token to its last.

        Which word a token belongs to is how many words there are with it. A text that does not fit
        into so few frames, (T, C), is one word from first to last, with a score of 0.
        """
        stands, rate = align(log_probs, ids), self.tasks[task]["frame_rate"]
        if stands is None:
            times = {"start": 0.0, "end": len(log_probs) / rate}
            whole = self.text(task, ids)
            return [{"text": whole, **times, "score": 0.0}] if whole else []
        texts = [self.text(task, ids[:size]) for size in range(len(ids) + 1)]
        placed = [
            (len(text.split()) - 1, stand)
            for text, before, stand in zip(texts[1:], texts, stands, strict=False)
            if text != before
        ]
        words, found = texts[-1].split(), []
        for index, group in groupby(placed, key=lambda pair: pair[0]):
            begins, ends, scores = zip(*(stand for _, stand in group), strict=True)
            times = {"start": begins[0] / rate, "end": ends[-1] / rate}
            found.append({"text": words[index], **times, "score": sum(scores) / len(scores)})
        return found

    def _graph(self, name: str) -> OnnxGraph | TorchGraph:
        if name not in self._graphs:
            names, path = self.config["graphs"][name], self.folder / name
            self._graphs[name] = (
                TorchGraph(path, names, self._threads)
                if path.suffix == ".pt2"
                else OnnxGraph(path, self._threads)
            )
        return self._graphs[name]

    def _predicted(self, task: str, found: Mapping[str, Array]) -> Any:
        entry = self.tasks[task]
        if "decoder" in entry:
            return self._written(task, found)
        first = found[entry["outputs"][0]][0]
        if entry["answers"] == "text":
            scores = first[: int(found[f"{task}.lengths"][0])]
            size = entry.get("beam_size")
            return prefix_beam(scores, size) if size else best_path(scores)
        if entry["answers"] == "turns":
            active = first[: int(found[f"{task}.lengths"][0])] > 0
            return turns(active, entry["median"], entry["frame_rate"])
        return first

    def _heard(self, task: str, found: Mapping[str, Array]) -> Any:
        """A prediction of one stretch, of token ids as text with its words."""
        made = self._predicted(task, found)
        if self.tasks[task]["answers"] != "text":
            return made
        words = None
        if self.times_words(task):
            size = int(found[f"{task}.lengths"][0])
            words = self.words(task, made, found[f"{task}.log_probs"][0, :size])
        cut = len(made) == self.tasks[task].get("max_tokens")
        return {"text": self.text(task, made), "words": words, "cut": cut}

    def _written(self, task: str, found: Mapping[str, Array]) -> list[int]:
        """A text token by token, until it ends or reaches its limit: the best of a beam.

        One that has ended counts by its log-probability over its length to the power of a penalty.
        The search is over when nothing in the beam would now count for more, as in transformers'
        `generate`; of a beam of one it is greedy.
        """
        entry = self.tasks[task]
        decoder, width = self._graph(entry["decoder"]), entry["beam_size"]
        logits = found[f"{task}.logits"]
        state = {name: found[f"{task}.{name}"] for name in BEAMS if f"{task}.{name}" in found}
        texts: list[list[int]] = [[]]
        sums = np.zeros(1)
        ended: list[tuple[float, list[int]]] = []
        for length in range(1, entry["max_tokens"] + 1):
            scores = sums[:, None] + log_softmax(logits)
            best = np.argsort(-scores, axis=None, kind="stable")[: 2 * width]
            tried = [(float(scores.flat[i]), *divmod(int(i), scores.shape[1])) for i in best]
            last, weight = length == entry["max_tokens"], length ** entry["length_penalty"]
            for score, row, token in tried[:width]:
                if token == END or last:
                    ended.append((score / weight, [*texts[row], token]))
            ended = sorted(ended, key=lambda one: -one[0])[:width]
            kept = [one for one in tried if one[2] != END][:width]
            if last or (len(ended) == width and kept[0][0] / weight <= ended[-1][0]):
                break
            texts = [[*texts[row], token] for _, row, token in kept]
            sums, rows, tokens = (np.array(column) for column in zip(*kept, strict=True))
            state = {name: chosen(array, rows, BEAMS[name]) for name, array in state.items()}
            made = decoder({"tokens": tokens, **state}, ["logits", "cache_out"])
            logits, state["cache"] = made["logits"], made["cache_out"]
            state["valid"] = np.pad(state["valid"], ((0, 0), (0, 1)), constant_values=True)
        return [token for token in ended[0][1] if token != END]

    def _joined(self, task: str, parts: Sequence[tuple[float, float, Any]]) -> dict[str, Any]:
        """Predictions of stretches, with the start and seconds of each, as one answer."""
        entry = self.tasks[task]
        made, seconds = [one for *_, one in parts], np.array([size for _, size, _ in parts])
        if entry["answers"] == "text":
            placed = [shifted(w, at, size) for at, size, one in parts for w in one["words"] or ()]
            return {
                "text": " ".join(one["text"] for one in made if one["text"]),
                "words": placed if self.times_words(task) else None,
                "cut": any(one["cut"] for one in made),
            }
        if entry["answers"] == "turns":
            return {"turns": named(parts)}
        if entry["answers"] == "vector":
            mean = (np.stack([unit(one) for one in made]) * seconds[:, None]).sum(0)
            vector = [round(float(x), 6) for x in unit(mean)]
            return {"vector": vector, "threshold": entry["threshold"]}
        if entry["answers"] == "labels":
            longest = made[int(seconds.argmax())]
            label = " | ".join(self.classes(task, longest))
            return {"label": label, "scores": None, "stretches": []}
        shares = np.exp(log_softmax(np.stack(made)))
        mean = (shares * seconds[:, None]).sum(0) / seconds.sum()
        whole, *apart = (
            dict(zip(entry["labels"], row.tolist(), strict=True)) for row in (mean, *shares)
        )
        timed = [
            {"start": at, "end": at + size, "scores": scores}
            for (at, size, _), scores in zip(parts, apart, strict=True)
        ]
        return {"label": max(whole, key=whole.__getitem__), "scores": whole, "stretches": timed}

    def classes(self, task: str, scores: Array) -> list[str]:
        """The best class of each slot, of the scores of all slots side by side."""
        slots, start = [], 0
        for labels in self.tasks[task]["slots"]:
            slots.append(labels[int(scores[start : start + len(labels)].argmax())])
            start += len(labels)
        return slots


def read_symbols(path: Path) -> Any:
    """What a vocabulary holds, by id from 1; or the tokenizer of pieces of words."""
    if not path.name.endswith(".tokenizer.json"):
        return json.loads(path.read_text("utf-8"))
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def read_audio(path: Path) -> Array:
    """Mono samples at 16 kHz of any file that libsndfile reads."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"{path} holds no samples, or such that are no numbers")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(mono)


def stretches(samples: Array, longest: float) -> Iterator[Array]:
    """Pieces of at most `longest` seconds; each but the last ends in a pause."""
    most = round(longest * SAMPLE_RATE)
    while len(samples) > most:
        end = _quietest(samples[:most])
        yield samples[:end]
        samples = samples[end:]
    yield samples


def _quietest(samples: Array) -> int:
    """The middle of the quietest fifth of a second in the second half."""
    hop, half = SAMPLE_RATE // 100, len(samples) // 2
    tail = samples[half : half + (len(samples) - half) // hop * hop].astype(np.float64)
    energies = np.square(tail).reshape(-1, hop).sum(1)
    width = min(round(FADE_SECONDS * 100), len(energies))
    sums = np.convolve(energies, np.ones(width), "valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))  # of equal ones the last
    return half + last * hop + width * hop // 2


def best_path(log_probs: Array) -> list[int]:
    """The best token of each frame, (T, C), repetitions and blanks taken out."""
    tokens = [int(token) for token, _ in groupby(log_probs.argmax(-1))]
    return [token for token in tokens if token != END]


def prefix_beam(log_probs: Array, beam_size: int) -> list[int]:
    """The most probable tokens, summed over their alignments (Hannun et al. 2014), of (T, C).

    Each prefix carries two log-probabilities: of ending in a blank, and in its last token.
    """
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        tried = [(t, p) for t, p in enumerate(frame) if p > FLOOR or t == END]
        for prefix, (blank, token) in beam.items():
            both = add_logs(blank, token)
            for t, p in tried:
                ways = [((*prefix, t), 1, both)] if t != END else [(prefix, 0, both)]
                if t != END and prefix[-1:] == (t,):  # once more needs a blank between
                    ways = [(prefix, 1, token), ((*prefix, t), 1, blank)]
                for to, which, score in ways:
                    grown[to][which] = add_logs(grown[to][which], score + p)
        best = sorted(grown.items(), key=lambda one: -add_logs(*one[1]))[:beam_size]
        beam = {prefix: (blank, token) for prefix, (blank, token) in best}
    return [*next(iter(beam))]


def add_logs(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    a, b = max(a, b), min(a, b)
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def align(log_probs: Array, ids: Sequence[int]) -> list[tuple[int, int, float]] | None:
    """First frame, the one after the last, and mean probability of each token on the best path.

    log_probs: (T, C). States are blank, token, blank, ..., blank; a step stays, goes on, or leaves
    out a blank between two tokens that differ. None: T is too short.
    """
    if not ids:
        return []
    states = np.full(2 * len(ids) + 1, END)
    states[1::2] = ids
    emitted = log_probs.astype(np.float64)[:, states]  # (T, 2 U + 1)
    jumps = np.zeros(len(states), bool)
    jumps[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    came = np.zeros(emitted.shape, int)
    for frame in range(1, len(emitted)):
        behind = np.concatenate([[-np.inf, -np.inf], best])
        ways = np.stack([best, behind[1:-1], np.where(jumps, behind[:-2], -np.inf)])
        came[frame] = ways.argmax(0)
        best = ways.max(0) + emitted[frame]
    state = len(states) - 1 - int(best[-2] > best[-1])
    if best[state] == -np.inf:
        return None
    path = np.zeros(len(emitted), int)
    for frame in reversed(range(len(emitted))):
        path[frame] = state
        state -= came[frame, state]
    stands = []
    for place in range(1, len(states), 2):
        frames = np.flatnonzero(path == place)
        score = float(np.exp(emitted[frames, place]).mean())
        stands.append((int(frames[0]), int(frames[-1]) + 1, score))
    return stands


def turns(active: Array, median: int, rate: float) -> list[tuple[int, float, float]]:
    """Who speaks, from when to when in seconds, of decisions (T, C) after a median filter."""
    around, frames = np.ones(median), len(active)
    many = np.convolve(np.ones(frames), around)[median // 2 : median // 2 + frames]
    found = []
    for speaker, column in enumerate(active.T.astype(float)):
        votes = np.convolve(column, around)[median // 2 : median // 2 + frames]
        speaks = np.concatenate([[0], (votes / many > 0.5).astype(int), [0]])
        edges = np.flatnonzero(np.diff(speaks))
        pairs = zip(edges[::2], edges[1::2], strict=True)
        found += [(speaker, float(start / rate), float(end / rate)) for start, end in pairs]
    return sorted(found, key=lambda turn: turn[1])


def named(parts: Sequence[tuple[float, float, Any]]) -> list[dict[str, Any]]:
    """Turns of stretches, which each name speakers anew, at their times in the recording."""
    made = []
    for number, (at, size, found) in enumerate(parts, 1):
        for speaker, start, end in found:
            name = f"speaker {speaker + 1}" + (f", stretch {number}" if len(parts) > 1 else "")
            made.append(shifted({"speaker": name, "start": start, "end": end}, at, size))
    return made


def shifted(one: Mapping[str, Any], at: float, size: float) -> dict[str, Any]:
    """A word or turn of a stretch at its time in the recording; its last frame reaches past it."""
    return {**one, "start": one["start"] + at, "end": min(one["end"], size) + at}


def chosen(array: Array, rows: Array, axis: int) -> Array:
    """These rows of an axis; nothing is copied if they are all of it."""
    same = np.array_equal(rows, np.arange(array.shape[axis]))
    return array if same else array.take(rows, axis)


def log_softmax(scores: Array) -> Array:
    """Scores (..., C) as log-probabilities."""
    down = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    logs: Array = down - np.log(np.exp(down).sum(-1, keepdims=True))
    return logs


def unit(vector: Array) -> Array:
    """The same direction with length one."""
    scaled: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return scaled


def rounded(value: Any) -> Any:
    """An answer as JSON has it."""
    if isinstance(value, dict):
        exact = ("vector", "threshold")
        return {key: one if key in exact else rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def shown(answer: Mapping[str, Any]) -> str:
    """An answer in one line."""
    if "turns" in answer:
        return "; ".join(f"{t['speaker']} {t['start']:.3f} {t['end']:.3f}" for t in answer["turns"])
    if "vector" in answer:
        return " ".join(f"{x:.6f}" for x in answer["vector"])
    return str(answer["text"] if "text" in answer else answer["label"])


def lines(format: str, name: str, seconds: float, answers: Mapping[str, Any]) -> Iterator[str]:
    """Answers about one recording, by task, as they are written."""
    if format == "json":
        told = {"audio": name, "duration": round(seconds, 3), "results": rounded(answers)}
        yield json.dumps(told, ensure_ascii=False)
        return
    for task, answer in answers.items():
        if format == "srt":
            yield subtitles(answer["words"] or [])
        elif format == "text":
            cut = "\tcut at its limit" * answer.get("cut", False)
            yield f"{name}\t{task}\t{shown(answer)}{cut}"
        elif "turns" in answer:
            for turn in answer["turns"]:
                times = (f"{turn['start']:.3f}", f"{turn['end']:.3f}")
                yield row((name, task, turn["speaker"], "", *times))
        else:
            scores = answer.get("scores")
            score = f"{scores[answer['label']]:.4f}" if scores else ""
            yield row((name, task, shown(answer), score, "0.000", f"{seconds:.3f}"))


def row(cells: Sequence[str]) -> str:
    """A line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def subtitles(words: Sequence[Mapping[str, Any]]) -> str:
    """SubRip: captions of a line that end at pauses."""
    captions: list[list[Mapping[str, Any]]] = []
    most, longest, pause = CAPTION
    for word in words:
        last = captions[-1] if captions else []
        if (
            not last
            or len(" ".join(one["text"] for one in [*last, word])) > most
            or word["end"] - last[0]["start"] > longest
            or word["start"] - last[-1]["end"] > pause
        ):
            captions.append([word])
        else:
            last.append(word)
    return "\n".join(
        f"{number}\n{clock(one[0]['start'])} --> {clock(one[-1]['end'])}\n"
        + " ".join(word["text"] for word in one)
        + "\n"
        for number, one in enumerate(captions, 1)
    )


def clock(seconds: float) -> str:
    """Of SubRip: 00:01:02,345."""
    minutes, rest = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"


def main() -> int:
    """Print answers about each file; 1 if one could not be read."""
    parser = argparse.ArgumentParser(description="Ask an exported run about recordings.")
    parser.add_argument("audio", nargs="+", help="sound files")
    parser.add_argument("--task", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--prompt", help="in words, for a task that was trained with such")
    formats = ("text", "json", "csv", "srt")
    parser.add_argument("--format", choices=formats, default="text", help="how answers are written")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    given = parser.parse_args()
    package, failed = Package(Path(__file__).parent, threads=given.threads), 0
    try:
        tasks = package.checked(given.task, given.prompt)
    except ValueError as error:
        parser.error(str(error))
    if given.format == "srt":
        timed = [task for task in tasks if package.times_words(task)]
        if not timed:
            parser.error(
                f"no times of words for {' or '.join(tasks)}: subtitles need a head with CTC; "
                "use --format text"
            )
        if len(given.audio) > 1:
            parser.error(f"subtitles are of one recording, found {len(given.audio)}; ask for each")
        tasks = timed[:1]
    if given.format == "csv":
        print(row(COLUMNS), flush=True)
    for name in given.audio:
        try:
            samples = read_audio(Path(name))
            answers = package(samples, tasks, given.prompt)
        except (ValueError, OSError, RuntimeError) as error:
            print(f"{name}\terror\t{error}", file=sys.stderr)
            failed = 1
            continue
        for line in lines(given.format, name, len(samples) / SAMPLE_RATE, answers):
            print(line, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
