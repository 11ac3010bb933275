"""Begin processes that work together, hear of their progress, and end them."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any

import torch

from speechfuse.errors import RunError, SpeechFuseError
from speechfuse.ranks import Rank
from speechfuse.types import Progress
from speechfuse.watch import AGAIN

GRACE = 3.0  # seconds in which the others may end by themselves when one has failed


@dataclass
class _Child:
    """A process, and what came of it."""

    process: Any
    said: connection.Connection
    error: BaseException | None = None


def run_together(
    work: Callable[..., None],
    arguments: Sequence[Any],
    count: int,
    progress: Progress | None,
    called: str = "training process",
    unit: str = "step",
) -> None:
    """Call `work(*arguments, progress, rank)` in so many new processes, and wait for them.

    called: each of them, in messages. unit: what `work` ends before it stops.

    Raises:
        SpeechFuseError: that of a process.
        RunError: a process was lost, or waited too long for another.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after what `work` does then; twice, at once.
    """
    context = get_context("spawn")  # a fork would inherit torch's threads
    packed = pickle.dumps((work, *arguments))  # plain: torch's own would share the weights
    threads = max(1, torch.get_num_threads() // count)
    asked, port = context.Event(), _free_port()
    children: list[_Child] = []
    with _told(asked, unit):
        try:
            for number in range(count):
                said, say = context.Pipe(duplex=False)
                rank = Rank(number, count, port, asked)
                process = context.Process(target=_begin, args=(rank, packed, say, threads, called))
                with _deaf():
                    process.start()
                say.close()  # ours, so that the end of theirs is seen
                children.append(_Child(process, said))
            _listen(children, progress, called)
        except RunError as lost:
            if asked.is_set():  # while it began; a group may have been sent SIGTERM
                raise KeyboardInterrupt from lost
            raise
        finally:
            for child in children:
                child.process.kill()
                child.process.join()
    if asked.is_set():
        raise KeyboardInterrupt


def _listen(children: Sequence[_Child], progress: Progress | None, called: str) -> None:
    """Until all have ended, or one has failed and the others had time to say why."""
    open_ones = {child.said: child for child in children}
    while open_ones:
        failed = any(child.error is not None or child.process.exitcode for child in children)
        ready = connection.wait(list(open_ones), GRACE if failed else None)
        if failed and not ready:
            break
        for said in ready:
            child = open_ones[said]  # type: ignore[index]
            try:
                message = child.said.recv()
            except EOFError:
                child.process.join()
                del open_ones[child.said]
                continue
            if isinstance(message, BaseException):
                child.error = message
            elif progress:
                progress(*message)
    _raise_what_failed(children, called)


def _raise_what_failed(children: Sequence[_Child], called: str) -> None:
    for number, child in enumerate(children):
        if child.error is None and (child.process.exitcode or 0) < 0:
            name = signal.Signals(-child.process.exitcode).name
            raise RunError(
                f"{called} {number + 1} of {len(children)} was ended by {name}, perhaps "
                f"for want of memory; {AGAIN}"
            )
    errors = [child.error for child in children if child.error is not None]
    errors.sort(key=lambda error: isinstance(error, RunError))  # a lost connection follows others
    if errors:
        raise errors[0]
    for number, child in enumerate(children):
        if child.process.exitcode:
            raise RunError(
                f"{called} {number + 1} of {len(children)} ended with exit code "
                f"{child.process.exitcode}; {AGAIN}"
            )


def _begin(rank: Rank, packed: bytes, say: Any, threads: int, called: str) -> None:
    """In a new process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Lightning would take another number
    torch.set_num_threads(threads)

    one_at_a_time = threading.Lock()

    def tell(message: Any) -> None:
        with one_at_a_time:
            say.send(message)

    def lost(why: str) -> None:
        tell(RunError(why))
        _end()

    def progress(*done: Any) -> None:
        tell(done)

    rank.lost = lost
    try:
        work, *arguments = pickle.loads(packed)  # noqa: S301 - of the process that began this one
        work(*arguments, progress, rank)
    except KeyboardInterrupt as error:
        tell(error)
    except SpeechFuseError as error:
        tell(error)
        _end()
    except Exception:
        where = f"{called} {rank.number + 1} of {rank.count}"
        tell(RuntimeError(f"{where} failed:\n{traceback.format_exc()}"))
        _end()


def _end() -> None:
    """At once: threads of torch that wait for a lost process abort an orderly end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _end_with_parent() -> None:
    """Not even a killed parent leaves processes that wait for each other."""
    parent = parent_process()
    assert parent is not None, "not in a process of run_together"
    parent.join()
    _end()


@contextmanager
def _told(asked: Any, unit: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event; the second time they interrupt."""

    def ask(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        logging.getLogger(__name__).warning("stopping after this %s; once more: at once", unit)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {}
    with suppress(ValueError):  # only the main thread may
        before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf() -> Iterator[None]:
    """A process begun here ignores Ctrl-C, which a terminal sends to all; it is told."""
    before = None
    with suppress(ValueError):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port
