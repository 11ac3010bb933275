"""One line for people: `speechfuse.load("runs/a")("call.wav")`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechfuse import build
from speechfuse.audio import SAMPLE_RATE, pad_clips
from speechfuse.bars import on_screen, shown_bars
from speechfuse.catalog import trusted_code
from speechfuse.checkpoint import Run
from speechfuse.contracts import ScoresClasses, ShowsLayers, Task, Upstream
from speechfuse.data.batching import by_duration
from speechfuse.errors import DataError, RunError, did_you_mean
from speechfuse.evaluate import load_model
from speechfuse.heads.ctc_align import align
from speechfuse.heads.ctc_head import CTCHead
from speechfuse.heads.text import Text
from speechfuse.measure import asked_device
from speechfuse.ops import moved
from speechfuse.pipeline.answers import (
    Answer,
    Label,
    Layers,
    Result,
    Scores,
    Speakers,
    Transcript,
    Voice,
    Word,
)
from speechfuse.pipeline.recordings import Recording, Samples, of_all, seconds_of
from speechfuse.pipeline.windows import windows_of
from speechfuse.tasks.classification import Classification
from speechfuse.tasks.rows import ids_of, padded
from speechfuse.turns import Turn
from speechfuse.types import Frames, Generated, LayerStack, Progress, Utterance

FETCHED = ("*.json", "*.yaml", "model.safetensors")  # of a published run; no code, no pickles
STRETCH_SECONDS = 20.0  # of a long recording that are read at once
BATCH_SECONDS = 60.0  # audio in one pass, padding counted
_UNIT = "seconds of audio"
Timed = TypeVar("Timed", Word, Scores, Turn)


@dataclass
class _Heard:
    """What is known of a recording so far."""

    recording: Recording
    duration: float = 0.0
    open: bool = True  # more of it is to come
    waiting: int = 0  # stretches that are read and not answered
    parts: dict[str, dict[float, tuple[float, Result]]] = field(default_factory=dict)
    layers: dict[str, list[Layers]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class _Stretch:
    of: _Heard
    start: float  # seconds
    samples: Samples

    @property
    def id(self) -> str:
        return f"{self.of.recording.name} {self.start:g}"

    @property
    def duration(self) -> float:
        return len(self.samples) / SAMPLE_RATE


class _Told:
    """Seconds that are heard, of how many."""

    def __init__(self, progress: Progress | None, many: Iterable[Any]) -> None:
        self._progress = of_all(many, progress) if isinstance(many, list) else progress
        self._heard = 0.0
        if self._progress:
            self._progress(_UNIT, 0, 1)

    def heard(self, seconds: float) -> None:
        self._heard += seconds
        if self._progress:
            done = int(self._heard)
            self._progress(_UNIT, done, done + 1)

    def end(self) -> None:
        if self._progress:
            total = max(1, math.ceil(self._heard))
            self._progress(_UNIT, total, total)


@contextmanager
def _watched(progress: Progress | bool | None, many: Iterable[Any]) -> Iterator[_Told]:
    """Whoever is given is told, or a bar is shown; see `SpeechModel.__call__`."""
    if progress is None:  # less is heard at once, and of a generator nobody knows how much it is
        progress = (
            on_screen() and isinstance(many, list) and sum(map(seconds_of, many)) > BATCH_SECONDS
        )
    if not isinstance(progress, bool):
        yield _Told(progress, many)
        return
    with shown_bars() if progress else nullcontext() as show:
        yield _Told(show, many)


class SpeechModel:
    """A trained run, ready to answer.

    Example:
            model = speechfuse.load("runs/a")
            answer = model("call.wav", tasks=["asr", "emotion"])
            print(answer["asr"].text, answer["emotion"].scores)
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | None = None,
        stretch: float = STRETCH_SECONDS,
        tasks: str | Sequence[str] | None = None,
        trust_code: bool = False,
    ) -> None:
        """device: cpu, cuda, cuda:1; a GPU if there is one, if left out.

        stretch: seconds of a long recording that are read at once. tasks: those that will be asked.
        trust_code: import parts that the run's recipe names as `module:Name`.

        Raises:
            RunError: no trained run, other weights of an upstream, or no such device or task.
            RecipeError: parts that are not trusted.
            UpstreamError: an upstream that cannot be found.
        """
        _check_seconds("stretch", stretch)
        run = Run(folder)
        with trusted_code(trust_code):
            self.recipe = run.recipe()
        self.folder, self.stretch, self._trust_code = folder, stretch, trust_code
        self.decisions = run.decisions()
        self.tasks: dict[str, Task] = {}
        for name, state in run.tasks().items():
            self.tasks[name] = build.build_task(name, self.recipe.tasks[name])
            self.tasks[name].load_state(state)
        self.checked(tasks)
        run.check(self.recipe)  # which is trusted now
        self.device = asked_device(device)
        self.model = load_model(run, self.recipe, self.tasks).to(self.device)
        tuned = build.tuned_upstreams(self.recipe)
        upstreams = {n: build.build_upstream(self.recipe, n) for n in self.recipe.upstreams}
        self._shortest = max(one.plan.min_samples for one in upstreams.values())
        self._silence = max(one.plan.silence for one in upstreams.values())
        self._frozen: dict[str, Upstream | None] = {}  # None: the model runs it itself
        for name, upstream in upstreams.items():
            self._frozen[name] = None if name in tuned else upstream
            if name not in tuned:
                upstream.load()
                upstream.to(self.device)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> SpeechModel:
        """The same as `load`, by the name that Hugging Face gives it."""
        return load(source, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write what others need to use it, with a card; options: of `publish.save_pretrained`."""
        from speechfuse.publish import save_pretrained

        with trusted_code(self._trust_code):
            return save_pretrained(self.folder, Path(folder), **options)

    def push_to_hub(self, name: str, *, private: bool = False, **options: Any) -> str:
        """Publish it on the hub under this name; options: of `save_pretrained`."""
        from speechfuse.publish import push_to_hub

        with TemporaryDirectory() as made:
            folder = Path(made) / name.rpartition("/")[2]
            self.save_pretrained(folder, **{"name": name, **options})
            return push_to_hub(folder, name, private=private)

    def checked(self, tasks: str | Sequence[str] | None) -> list[str]:
        """The tasks that are asked, one by its name or several; all, if none is named.

        Raises:
            RunError: it has no such task.
        """
        named = [tasks] if isinstance(tasks, str) else tasks or ()
        for name in named:
            if name not in self.tasks:
                raise RunError(f"the run has no task '{name}'; {did_you_mean(name, self.tasks)}")
        return list(dict.fromkeys(named)) or [*self.tasks]

    def __call__(
        self,
        audio: Any,
        tasks: str | Sequence[str] | None = None,
        *,
        prompt: str | None = None,
        layers: bool = False,
        window: float | None = None,
        errors: Literal["raise", "keep"] = "raise",
        progress: Progress | bool | None = None,
    ) -> Any:
        """An `Answer` for one recording, a list for a list, an iterator for an iterator.

        audio: a path, an open file, (samples, rate), what datasets gives, or several of them.
        prompt: in words, for a run that was trained with such. layers: with the weights of layers.
        window: seconds; classes also for windows of about this length, from the same frames.
        errors: keep gives an answer with `error` for what cannot be read. progress: True shows a
        bar, False none; if left out, one is shown on a terminal where there is more than a minute
        of audio, but of an iterator. Or what is told ("seconds of audio", done, total) at first,
        after each minute at most, and when all are done; of an iterator the total is not known,
        one more than done until then.

        Raises:
            DataError: audio that cannot be read.
            RunError: no such task, a prompt where none was learned, or a window without length.
        """
        if window is not None:
            _check_seconds("window", window)
        if errors not in ("raise", "keep"):
            raise RunError(f"errors={errors!r}; choose from: raise, keep")
        one = not isinstance(audio, list) and not _is_lazy(audio)
        many: Iterable[Any] = [audio] if one else audio
        wanted = self.checked(tasks)
        if prompt is not None:
            self._check_prompt(wanted)

        def watched() -> Iterator[Answer]:
            with _watched(progress, many) as told:
                yield from self._answers(many, wanted, prompt, layers, window, errors, told)

        found = watched()
        if one:
            (answer,) = found
            return answer
        return list(found) if isinstance(audio, list) else found

    @property
    def times_words(self) -> list[str]:
        """Tasks whose words have times."""
        heads = {name: self.model.head_of(name) for name in self.tasks}
        return [
            name
            for name, head in heads.items()
            if isinstance(head, CTCHead) or (isinstance(head, Text) and head.branch is not None)
        ]

    def _answers(
        self,
        many: Iterable[Any],
        tasks: Sequence[str],
        prompt: str | None,
        layers: bool,
        window: float | None,
        errors: str,
        told: _Told,
    ) -> Iterator[Answer]:
        """In the order that they came; no more is held than fills a batch."""
        queue: list[_Heard] = []
        waiting: list[_Stretch] = []

        def ready() -> Iterator[Answer]:
            while queue and not queue[0].open and not queue[0].waiting:
                yield self._joined(queue.pop(0), tasks)

        for number, given in enumerate(many, 1):
            recording = given if isinstance(given, Recording) else Recording(given, number)
            heard = _Heard(recording)
            queue.append(heard)
            try:
                for start, samples in recording.stretches(self.stretch):
                    heard.duration = start + len(samples) / SAMPLE_RATE
                    if len(samples) < self._shortest:
                        if not start:
                            raise DataError(
                                f"{recording.name} has {len(samples)} samples at {SAMPLE_RATE} Hz, "
                                f"the encoders need {self._shortest} for one frame; leave it out"
                            )
                        continue  # a breath at the end
                    heard.waiting += 1
                    waiting.append(_Stretch(heard, start, samples))
                    if sum(one.duration for one in waiting) >= BATCH_SECONDS:
                        self._hear(waiting, tasks, prompt, layers, window, told)
                        waiting = []
            except DataError as error:
                if errors == "raise":
                    raise
                heard.error = str(error)
            heard.open = False
            yield from ready()
        self._hear(waiting, tasks, prompt, layers, window, told)
        told.end()
        yield from ready()

    @torch.no_grad()
    def _hear(
        self,
        stretches: Sequence[_Stretch],
        tasks: Sequence[str],
        prompt: str | None,
        layers: bool,
        window: float | None,
        told: _Told,
    ) -> None:
        """Answer stretches, those of similar length together."""
        for batch in by_duration(stretches, BATCH_SECONDS, silence=self._silence):
            clips = [torch.from_numpy(one.samples) for one in batch]
            wav = moved(pad_clips(clips), self.device)
            given: dict[str, Sequence[LayerStack] | Frames] = {}
            if layers:  # whose weights are shown, which takes the stacks
                inputs = [wav if up is None else up(wav) for up in self._frozen.values()]
                given.update(dict.fromkeys(tasks, self.model.stacks(inputs)))
            else:
                given.update(self.model.hear([*self._frozen.values()], wav, tasks))
            for name in tasks:
                prompts = None if prompt is None else [prompt] * len(batch)
                frames = self.model.fuse(given[name], name)
                found = self.model.answer(frames, name, prompts)
                results = self._results(name, frames, found, prompts, window)
                for one, result in zip(batch, results, strict=True):
                    parts = one.of.parts.setdefault(name, {})
                    parts[one.start] = (one.duration, result)
                if layers:
                    self._note_layers(name, given[name], found, batch)
            for one in batch:
                one.of.waiting -= 1
            told.heard(sum(one.duration for one in batch))

    def _results(
        self,
        name: str,
        frames: Frames,
        found: Sequence[Any],
        prompts: Sequence[str] | None,
        window: float | None,
    ) -> list[Result]:
        """Predictions of the head, with scores and times."""
        task, head = self.tasks[name], self.model.head_of(name)
        if task.reads == "vector":
            units = torch.nn.functional.normalize(torch.stack([*found]).float(), dim=1, eps=1e-12)
            return [Voice(unit.cpu().numpy(), self.decisions.get(name)) for unit in units]
        if task.reads == "turns":
            return [
                Speakers([Turn(f"speaker {i + 1}", begin, end) for i, begin, end in turns])
                for turns in found
            ]
        texts = self._texts(task, found)
        if task.reads == "tokens":
            timed = self._words(name, frames, found, prompts)
            return [
                Transcript(text, words, isinstance(one, Generated) and one.cut)
                for text, words, one in zip(texts, timed, found, strict=True)
            ]
        if not isinstance(task, Classification) or not isinstance(head, ScoresClasses):
            return [Label(text, None) for text in texts]
        scores = self._scores(name, frames, prompts)
        over_time: list[list[Scores]] = [[] for _ in texts]
        if window and (cut := windows_of(frames, window)):
            again = prompts and [prompts[row] for row in cut.of]
            found = self._scores(name, cut.frames, again)
            for row, (start, end), shares in zip(cut.of, cut.times, found, strict=True):
                over_time[row].append(Scores(start, end, shares))
        return [
            Label(text, shares, windows=parts)
            for text, shares, parts in zip(texts, scores, over_time, strict=True)
        ]

    def _scores(
        self, name: str, frames: Frames, prompts: Sequence[str] | None
    ) -> list[dict[str, float]]:
        """Probabilities of the classes, of each row."""
        task, head = self.tasks[name], self.model.head_of(name)
        assert isinstance(task, Classification)
        assert isinstance(head, ScoresClasses)
        logits = head.logits(self.model.read(frames, name, prompts))
        rows = logits.double().softmax(-1).cpu().tolist()
        return [dict(zip(task.labels, row, strict=True)) for row in rows]

    def _words(
        self, name: str, frames: Frames, found: Sequence[Any], prompts: Sequence[str] | None
    ) -> list[list[Word] | None]:
        """Of each text, its words with their times; None without CTC."""
        head, reader = self.model.head_of(name), self.model.reader
        if isinstance(head, CTCHead):
            read = self.model.read(frames, name, prompts)
            log_probs, lengths = head.log_probs(read)
            rate = read.frame_rate / head.join
        elif isinstance(head, Text) and head.branch is not None:
            assert reader is not None  # a text head is nothing without it
            speech = reader(frames, name, ["speech"], prompts=prompts)[0]
            log_probs = head.ctc_log_probs(speech)
            lengths, rate = speech.lengths, speech.frame_rate
        else:
            return [None] * len(found)
        rows = zip(log_probs, lengths.tolist(), found, strict=True)
        return [self._aligned(name, row[:size], ids_of(one), rate) for row, size, one in rows]

    def _aligned(self, name: str, log_probs: Tensor, ids: Sequence[int], rate: float) -> list[Word]:
        """Words with their times, each from its first token to its last.

        Which word a token belongs to is how many words there are with it. A text of more tokens
        than there are frames stands nowhere in them: it is one `Word`, of all of them.
        """
        stands = align(log_probs, ids)
        if stands is None:
            (text,) = self._texts(self.tasks[name], [ids])
            return [Word(text, 0.0, len(log_probs) / rate, 0.0)] if text else []
        texts = self._texts(self.tasks[name], [list(ids[: i + 1]) for i in range(len(ids))])
        placed = [
            (len(text.split()) - 1, stand)
            for text, before, stand in zip(texts, ["", *texts], stands, strict=False)
            if text != before
        ]
        words = texts[-1].split() if texts else []
        found = []
        for index, group in groupby(placed, key=lambda pair: pair[0]):
            members = [stand for _, stand in group]
            score = sum(one.score for one in members) / len(members)
            begin, end = members[0].begin / rate, members[-1].end / rate
            found.append(Word(words[index], begin, end, score))
        return found

    def _texts(self, task: Task, found: Sequence[Any]) -> list[str]:
        """Predictions as the task writes them down."""
        nobody = [Utterance(id=str(i), audio=Path()) for i in range(len(found))]
        return [row["prediction"] for row in task.table(nobody, found, [])]

    def _note_layers(
        self,
        name: str,
        given: Sequence[LayerStack] | Frames,
        found: Sequence[Any],
        batch: Sequence[_Stretch],
    ) -> None:
        """Weights of the interfaces that have some, by frame where frames differ."""
        assert not isinstance(given, Frames)
        fusion = self.model.fusion_of(name)
        read = fusion.readings(given)
        names = [*self._frozen] if len(read) == len(self._frozen) else [" + ".join(self._frozen)]
        numbers = [up.layers if up else None for up in self._frozen.values()]
        for model, own, (interface, stack) in zip(names, numbers, read, strict=False):
            if isinstance(interface, ShowsLayers):
                for kind, weights in interface.layer_weights(stack, name).items():
                    label = f"{model}, {kind}" if kind else model
                    _spread(name, label, own, weights, stack.lengths, batch)
        reader = self.model.reader
        if reader is None or not isinstance(reader.interface, ShowsLayers):
            return
        texts = None
        targets = padded([0] for _ in batch)
        if isinstance(self.model.head_of(name), Text):
            ids = [ids_of(one) for one in found]
            targets = padded(ids)
            texts = [[*self._texts(self.tasks[name], [[i] for i in row]), "end"] for row in ids]
        on_device = moved(targets, self.device)
        weighing, positions = self.model.context_reading(given, name, on_device)
        assert isinstance(weighing, ShowsLayers)
        for kind, weights in weighing.layer_weights(positions, name).items():
            label = f"prompted transformer, {kind}" if kind else "prompted transformer"
            _spread(name, label, None, weights, positions.lengths, batch, texts)

    def _joined(self, heard: _Heard, tasks: Sequence[str]) -> Answer:
        """The answers of stretches as one."""
        name = heard.recording.name
        if heard.error is not None:
            return Answer(name, heard.duration, error=heard.error)
        results = {}
        for task in tasks:
            parts = sorted(heard.parts[task].items())
            results[task] = _join([(start, size, result) for start, (size, result) in parts])
        layers = {
            task: sorted(given, key=lambda one: one.start)  # they were heard by length
            for task, given in heard.layers.items()
        }
        return Answer(name, heard.duration, results, layers)

    def _check_prompt(self, wanted: Sequence[str]) -> None:
        """Refuse words for several tasks, or for one that has learned none."""
        worded = [name for name, entry in self.recipe.tasks.items() if entry.prompts]
        if len(wanted) != 1 or wanted[0] not in worded:
            raise RunError(
                f"a prompt in words asks one task that was trained with some, found "
                f"{' and '.join(wanted)}; choose from: {', '.join(worded) or 'none'}"
            )


def load(source: str | Path, *, revision: str | None = None, **options: Any) -> SpeechModel:
    """A trained run, from its folder, or a published one by its name on the hub.

    revision: a commit there. options: those of `SpeechModel`. Nothing of a downloaded folder is
    unpickled or executed, nor is code imported that it names, unless trust_code says so.

    Raises:
        RunError: no run there, or nothing of that name on the hub.
    """
    return SpeechModel(_run_folder(source, revision), **options)


def _run_folder(source: str | Path, revision: str | None) -> Path:
    name = str(source)
    if Path(source).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*FETCHED]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(
            f"no run folder {name} here, and it cannot be fetched from the hub "
            f"({type(error).__name__}); check the name and the network"
        ) from error


def _check_seconds(what: str, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise RunError(f"a {what} of {seconds:g} s; give seconds above 0")


def _is_lazy(audio: Any) -> bool:
    return isinstance(audio, Iterator) and not hasattr(audio, "read")


def _spread(
    task: str,
    model: str,
    numbers: Sequence[int] | None,
    weights: Tensor,
    lengths: Tensor,
    batch: Sequence[_Stretch],
    texts: Sequence[Sequence[str]] | None = None,
) -> None:
    """Note weights (L,) or (L, B, T) for every stretch of a batch."""
    for row, one in enumerate(batch):
        own = weights if weights.dim() == 1 else weights[:, row, : int(lengths[row])]
        values = own.float().cpu().numpy()
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        shown = numbers if numbers and len(numbers) == len(values) else range(len(values))
        note = Layers(one.start, one.start + one.duration, model, shown, values)
        if texts is not None and values.ndim == 2:
            note = note._replace(texts=texts[row])
        one.of.layers.setdefault(task, []).append(note)


def _join(parts: Sequence[tuple[float, float, Any]]) -> Result:
    """Results of stretches as (start, seconds, result) in one, times from the beginning."""
    first = parts[0][2]
    if isinstance(first, Transcript):
        text = " ".join(result.text for _, _, result in parts if result.text)
        cut = any(result.cut for _, _, result in parts)
        if first.words is None:  # as all of them
            return Transcript(text, None, cut)
        words = [
            _placed(word, start, size) for start, size, result in parts for word in result.words
        ]
        return Transcript(text, words, cut)
    if isinstance(first, Speakers):
        many = len(parts) > 1
        return Speakers(
            [
                _placed(turn._replace(speaker=turn.speaker + f", stretch {i}" * many), start, size)
                for i, (start, size, result) in enumerate(parts, 1)
                for turn in result.turns
            ]
        )
    seconds = np.array([size for _, size, _ in parts])
    if isinstance(first, Voice):
        vectors = np.stack([result.vector for _, _, result in parts])
        mean = (vectors * seconds[:, None]).sum(0)
        unit = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        return Voice(unit, first.decision)
    if first.scores is None:
        longest = max(parts, key=lambda part: part[1])[2]
        return Label(longest.label, None)
    stretches = [Scores(start, start + size, r.scores) for start, size, r in parts]
    windows = [_placed(one, start, size) for start, size, result in parts for one in result.windows]
    if len(parts) == 1:
        return Label(first.label, first.scores, stretches, windows)
    shares = np.array([[*one.scores.values()] for one in stretches])
    mean = (shares * seconds[:, None]).sum(0) / seconds.sum()
    names = [*first.scores]
    scores = dict(zip(names, mean.tolist(), strict=True))
    return Label(names[int(mean.argmax())], scores, stretches, windows)


def _placed(one: Timed, start: float, size: float) -> Timed:
    """Seconds of a stretch as those of the recording; a last frame reaches past its samples."""
    return one._replace(start=one.start + start, end=min(one.end, size) + start)
