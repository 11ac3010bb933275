"""Ask an exported run: python run.py clip.wav calls/*.mp3 --task asr --task emotion

Stands in every package that `speechfuse export` writes and needs nothing of speechfuse: numpy,
soundfile, soxr and onnxruntime (or torch, for a package in torch's format), and tokenizers where
texts are pieces of words. In Python:

    from run import Package
    package = Package("folder")
    package("clip.wav", ["asr"])         # {"asr": {"text": "..."}}

One recording is computed at a time. Long ones are cut at pauses into stretches of 20 s or less.
"""

from __future__ import annotations

import argparse
import json
import sys
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

    def __init__(self, path: Path, outputs: Sequence[str], threads: int) -> None:
        import torch

        if not hasattr(torch.ops.speechfuse, "lstm"):
            sys.path.insert(0, str(path.parent))
            import lstm  # type: ignore[import-not-found]  # noqa: F401  the file beside this one

        if threads:
            torch.set_num_threads(threads)
        self._module: Any = torch.export.load(path).module(check_guards=False)
        self._outputs = outputs

    def __call__(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            made = self._module(*map(torch.from_numpy, feeds.values()))
        found = dict(zip(self._outputs, made, strict=True))
        return {name: found[name].numpy() for name in outputs}


class Package:
    """An exported run, ready to answer."""

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        """threads: that a graph may use; 0: as many as there are cores."""
        self.folder, self._threads = Path(folder), threads
        self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        self.tasks: dict[str, dict[str, Any]] = self.config["tasks"]
        self._graphs: dict[str, OnnxGraph | TorchGraph] = {}
        self._tokenizers: dict[str, Any] = {}

    def __call__(self, audio: str | Path | Array, tasks: Sequence[str] = ()) -> dict[str, Any]:
        """What it says of a file, or of mono samples at 16 kHz, by task.

        Raises:
            ValueError: no such task, or a recording that is too short.
        """
        samples = audio if isinstance(audio, np.ndarray) else read_audio(Path(audio))
        wanted = self.checked(tasks)
        parts: list[tuple[float, dict[str, Any]]] = []
        for piece in stretches(samples, self.config["stretch_seconds"]):
            if len(piece) < self.config["min_samples"]:
                if not parts:
                    raise ValueError(
                        f"{len(piece)} samples at {SAMPLE_RATE} Hz, the encoders need "
                        f"{self.config['min_samples']} for one frame"
                    )
                continue  # a breath at the end
            parts.append((len(piece) / SAMPLE_RATE, self.predict(piece, wanted)))
        return {
            task: self._joined(task, [(s, found[task]) for s, found in parts]) for task in wanted
        }

    def checked(self, tasks: Sequence[str]) -> list[str]:
        """The tasks that are asked; all, if none is named."""
        for task in tasks:
            if task not in self.tasks:
                raise ValueError(f"no task '{task}'; it has: {', '.join(self.tasks)}")
        return list(dict.fromkeys(tasks)) or [*self.tasks]

    def outputs(self, samples: Array, lengths: Array, tasks: Sequence[str]) -> dict[str, Array]:
        """What the graph gives for a batch (B, S), of which (B,) samples of each are its own."""
        names = [name for task in tasks for name in self.tasks[task]["outputs"]]
        short = self.config["pad_to"] - samples.shape[1]  # torch's programs refuse what is shorter
        samples = np.pad(samples, ((0, 0), (0, max(0, short))))
        feeds: dict[str, Array] = {
            "samples": samples.astype(np.float32),
            "lengths": lengths.astype(np.int64),
        }
        return self._graph(self.config["graph"])(feeds, names)

    def predict(self, samples: Array, tasks: Sequence[str]) -> dict[str, Any]:
        """Of one clip, by task: token ids, scores of classes (C,), a vector, or turns."""
        found = self.outputs(samples[None], np.array([len(samples)]), tasks)
        return {task: self._predicted(task, found) for task in tasks}

    def text(self, task: str, ids: Sequence[int]) -> str:
        """Token ids as text."""
        entry = self.tasks[task]
        if "tokenizer" in entry:
            if task not in self._tokenizers:
                from tokenizers import Tokenizer

                path = self.folder / entry["tokenizer"]
                self._tokenizers[task] = Tokenizer.from_file(str(path))
            text: str = self._tokenizers[task].decode([i for i in ids if i != END])
        else:
            known = json.loads((self.folder / entry["vocabulary"]).read_text("utf-8"))
            text = entry["between"].join(known[i - 1] for i in ids if i != END)
            if entry["first_alone"]:
                text = known[ids[0] - 1] if ids else ""
        return " ".join(text.split())

    def _graph(self, name: str) -> OnnxGraph | TorchGraph:
        if name not in self._graphs:
            graph, path = self.config["graphs"][name], self.folder / name
            self._graphs[name] = (
                TorchGraph(path, graph["outputs"], self._threads)
                if path.suffix == ".pt2"
                else OnnxGraph(path, self._threads)
            )
        return self._graphs[name]

    def _predicted(self, task: str, found: Mapping[str, Array]) -> Any:
        entry = self.tasks[task]
        first = found[entry["outputs"][0]]
        if "decoder" in entry:
            return self._written(task, found)
        if entry["answers"] == "text":
            return best_path(first[0, : int(found[f"{task}.lengths"][0])])
        if entry["answers"] == "turns":
            active = first[0, : int(found[f"{task}.lengths"][0])] > 0
            return turns(active, entry["median"], entry["frame_rate"])
        return first[0]

    def _written(self, task: str, found: Mapping[str, Array]) -> list[int]:
        """A text token by token, the likeliest each, until it ends or reaches its limit."""
        entry = self.tasks[task]
        decoder = self._graph(entry["decoder"])
        logits, valid = found[f"{task}.logits"], found[f"{task}.valid"]
        state = {"cache": found[f"{task}.cache"]}
        weighed = {"heard": found[f"{task}.heard"]} if f"{task}.heard" in found else {}
        ids: list[int] = []
        while (token := int(logits[0].argmax())) != END:
            ids.append(token)
            if len(ids) == entry["max_tokens"]:
                break
            feeds = {"tokens": np.array([token]), "valid": valid, **state, **weighed}
            made = decoder(feeds, ["logits", "cache_out"])
            logits, state = made["logits"], {"cache": made["cache_out"]}
            valid = np.concatenate([valid, np.ones((1, 1), bool)], axis=1)
        return ids

    def _joined(self, task: str, parts: Sequence[tuple[float, Any]]) -> dict[str, Any]:
        """Predictions of stretches, with how many seconds each has, as one answer."""
        entry, seconds = self.tasks[task], np.array([length for length, _ in parts])
        if entry["answers"] == "text":
            return {"text": " ".join(filter(None, (self.text(task, ids) for _, ids in parts)))}
        if entry["answers"] == "turns":
            return {"turns": _shifted(parts)}
        if entry["answers"] == "vector":
            units = np.stack([unit(vector) for _, vector in parts])
            mean = (units * seconds[:, None]).sum(0)
            return {"vector": [round(float(x), 6) for x in unit(mean)]}
        if entry["answers"] == "labels":
            longest = max(parts, key=lambda part: part[0])[1]
            return {"label": " | ".join(self.classes(task, longest))}
        shares = np.stack([softmax(scores) for _, scores in parts])
        mean = (shares * seconds[:, None]).sum(0) / seconds.sum()
        labels = entry["labels"]
        scores = {name: round(float(p), 6) for name, p in zip(labels, mean, strict=True)}
        return {"label": labels[int(mean.argmax())], "scores": scores}

    def classes(self, task: str, scores: Array) -> list[str]:
        """The best class of each slot, of the scores of all slots side by side."""
        slots, start = [], 0
        for labels in self.tasks[task]["slots"]:
            slots.append(labels[int(scores[start : start + len(labels)].argmax())])
            start += len(labels)
        return slots


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


def _shifted(parts: Sequence[tuple[float, Any]]) -> list[dict[str, Any]]:
    """Turns of stretches, which each name speakers anew, at their times in the recording."""
    made, start = [], 0.0
    for number, (seconds, found) in enumerate(parts, 1):
        for speaker, begin, end in found:
            name = f"speaker {speaker + 1}" + (f", stretch {number}" if len(parts) > 1 else "")
            times = {"start": round(start + begin, 6), "end": round(start + end, 6)}
            made.append({"speaker": name, **times})
        start += seconds
    return made


def softmax(scores: Array) -> Array:
    """Scores (C,) as shares that sum to one."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    shares: Array = powers / powers.sum()
    return shares


def unit(vector: Array) -> Array:
    """The same direction with length one."""
    scaled: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return scaled


def shown(answer: Mapping[str, Any]) -> str:
    """An answer in one line."""
    if "text" in answer:
        return str(answer["text"])
    if "label" in answer:
        return str(answer["label"])
    if "vector" in answer:
        return " ".join(f"{x:.6f}" for x in answer["vector"])
    return "; ".join(f"{t['speaker']} {t['start']:.2f} {t['end']:.2f}" for t in answer["turns"])


def main() -> int:
    """Print a line for each file and task; 1 if a file could not be read."""
    parser = argparse.ArgumentParser(description="Ask an exported run about recordings.")
    parser.add_argument("audio", nargs="+", help="sound files")
    parser.add_argument("--task", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    given = parser.parse_args()
    package, failed = Package(Path(__file__).parent, threads=given.threads), 0
    try:
        tasks = package.checked(given.task)
    except ValueError as error:
        parser.error(str(error))
    for name in given.audio:
        try:
            answers = package(name, tasks)
        except (ValueError, OSError, RuntimeError) as error:
            print(f"{name}\terror\t{error}", file=sys.stderr)
            failed = 1
            continue
        if given.json:
            print(json.dumps({"file": name, **answers}, ensure_ascii=False), flush=True)
        else:
            for task in tasks:
                print(f"{name}\t{task}\t{shown(answers[task])}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
