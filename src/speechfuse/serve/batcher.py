"""Answers requests that arrive together in one pass of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from time import monotonic
from typing import Any

from speechfuse.errors import SpeechFuseError
from speechfuse.serve.job import Job
from speechfuse.serve.limits import Limits
from speechfuse.serve.meters import Meters
from speechfuse.serve.refusals import Refusal

_LOG = logging.getLogger(__name__)


class Batcher:
    """One thread that alone calls the model.

    The first job waits a few milliseconds for others that ask the same; so much audio goes
    together. Whoever asks something else comes next.
    """

    def __init__(self, model: Callable[..., Any], limits: Limits, meters: Meters) -> None:
        """model: a `SpeechModel`."""
        self.model, self.limits, self.meters = model, limits, meters
        self._waiting: list[Job] = []
        self._running: Sequence[Job] = ()
        self._changed, self._open = Condition(), True
        self._thread = Thread(target=self._work, name="speechfuse-batcher", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Refuse what waits, end the thread after the batch that runs."""
        with self._changed:
            self._open = False
            left, self._waiting = self._waiting, []
            self._changed.notify()
        for job in left:
            job.finish(_stopping())
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Raises Refusal (503) if too much audio waits, or the service ends."""
        with self._changed:
            if not self._open:
                raise _stopping()
            held = sum(one.seconds for one in [*self._waiting, *self._running])
            if held and held + job.seconds > self.limits.backlog:
                raise Refusal(
                    503,
                    f"{held:.0f} s of audio are waiting",
                    f"at most {self.limits.backlog:.0f} s at once",
                    "try again soon",
                )
            self._waiting.append(job)
            self._changed.notify()

    def give_up(self, job: Job) -> None:
        """Nobody waits for it any longer; what has begun ends at the next stretch."""
        job.given_up = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while batch := self._collect():
            self.meters.batch(len(batch), sum(job.seconds for job in batch))
            self._answer(batch)
            self._running = ()

    def _collect(self) -> list[Job]:
        """The next jobs to answer together; none when the service ends."""
        with self._changed:
            while self._open:
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                batch: list[Job] = []
                seconds = 0.0
                for job in self._waiting:
                    fits = not batch or seconds + job.seconds <= self.limits.batch_seconds
                    if job.asks == first.asks and fits:
                        batch.append(job)
                        seconds += job.seconds
                left = first.arrived + self.limits.wait_ms / 1000 - monotonic()
                if left > 0 and seconds < self.limits.batch_seconds:
                    self._changed.wait(left)
                    continue
                self._waiting = [job for job in self._waiting if job not in batch]
                self._running = batch
                return batch
        return []

    def _answer(self, batch: Sequence[Job]) -> None:
        """Each its own answer or error; where one breaks the model, the others are asked anew."""
        tasks, layers, window, prompt = batch[0].asks
        asked: dict[str, Any] = {"layers": layers, "window": window, "prompt": prompt}
        try:
            answers = self.model([*batch], tasks, **asked, errors="keep")
            for job, answer in zip(batch, answers, strict=True):
                job.finish(answer)
        except SpeechFuseError as error:  # what all of them ask for
            for job in batch:
                job.finish(error)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
                return
            _LOG.exception("no answer for %s", batch[0].name)
            batch[0].finish(error)


def _stopping() -> Refusal:
    return Refusal(503, "the service is stopping", "a running one", "try again later")
