"""One recording that waits for its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from time import monotonic

from speechfuse.audio import SAMPLE_RATE
from speechfuse.errors import DataError
from speechfuse.pipeline.answers import Answer
from speechfuse.pipeline.recordings import Recording, Samples


class Job(Recording):
    """Samples at 16 kHz and what is asked of them; the answer comes through `future`."""

    def __init__(
        self,
        samples: Samples,
        name: str,
        tasks: Sequence[str],
        *,
        layers: bool = False,
        window: float | None = None,
        prompt: str | None = None,
    ) -> None:
        super().__init__((samples, SAMPLE_RATE))
        self.name, self.tasks, self.layers, self.prompt = name, tuple(tasks), layers, prompt
        self.window = window
        self.future: Future[Answer] = Future()
        self.arrived, self.given_up = monotonic(), False
        self.seconds = len(samples) / SAMPLE_RATE

    @property
    def asks(self) -> tuple[tuple[str, ...], bool, float | None, str | None]:
        """Jobs that ask the same can be answered together."""
        return self.tasks, self.layers, self.window, self.prompt

    def stretches(self, longest: float) -> Iterator[tuple[float, Samples]]:
        for stretch in super().stretches(longest):
            if self.given_up:
                raise DataError(f"{self.name} was given up; send it again")
            yield stretch

    def finish(self, answer: Answer | Exception) -> None:
        """Tell who waits, if somebody still does."""
        with suppress(InvalidStateError):
            if isinstance(answer, Exception):
                self.future.set_exception(answer)
            else:
                self.future.set_result(answer)
