"""Files harmed and read one after another in a process of its own, which may die, hang or swell."""

import hashlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["speechfuse.train", "speechfuse.predict", "lhotse.dataset"])
ADDRESSES = 4 << 30  # bytes that may be asked for beyond what it has: not used, but a limit
MOST = 20  # failures after which it gives up


@dataclass(frozen=True)
class Outcome:
    """What became of one harmed file. problem: neither a result nor one clear error."""

    number: int
    refused: bool = False
    seconds: float = 0.0
    megabytes: float = 0.0  # of memory at its peak, beyond what the process had before
    problem: str = ""


def outcomes(
    harm: Callable[[int], Any],
    read: Callable[[], Any],
    count: int,
    *,
    seconds: float,
    megabytes: float,
    unchanged: Path | None = None,
) -> list[Outcome]:
    """harm: writes the file of a number. read: what a user does with it; both can be pickled.

    seconds, megabytes: for each. unchanged: a folder in which reading writes nothing.
    """
    found: list[Outcome] = []
    while len(found) < count and sum(bool(one.problem) for one in found) < MOST:
        here, there = CONTEXT.Pipe(duplex=False)
        given = (there, harm, read, range(len(found), count), unchanged)
        process = CONTEXT.Process(target=_work, args=given)
        process.start()
        there.close()
        found += _watched(here, process, len(found), count, seconds)
        process.kill()
        process.join()
    return [_within(one, megabytes) for one in found]


def _watched(
    pipe: Connection, process: Any, first: int, count: int, seconds: float
) -> list[Outcome]:
    """What a process reports until it is done, dies or takes too long."""
    found: list[Outcome] = []
    pipe.recv()  # it has started
    for number in range(first, count):
        try:
            if pipe.poll(seconds):
                found.append(pipe.recv())
                continue
            problem = f"not done after {seconds:g} s"
        except EOFError:
            process.join()
            problem = f"the process ended with {process.exitcode}"
        return [*found, Outcome(number, problem=problem)]
    return found


def _within(one: Outcome, megabytes: float) -> Outcome:
    if one.problem or one.megabytes <= megabytes:
        return one
    return Outcome(one.number, problem=f"took {one.megabytes:.0f} MB of memory")


def _work(
    pipe: Connection,
    harm: Callable[[int], Any],
    read: Callable[[], Any],
    numbers: range,
    unchanged: Path | None,
) -> None:
    import logging
    import warnings

    import torch

    from speechfuse.errors import SpeechFuseError

    torch.set_num_threads(1)
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write there what they think of a file
    warnings.simplefilter("ignore")
    size = _status("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    pipe.send("started")
    for number in numbers:
        harm(number)
        before = contents(unchanged) if unchanged else {}
        refused, problem = False, ""
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        held, began = _status("VmRSS"), time.monotonic()
        try:
            read()
        except SpeechFuseError as error:
            refused = True
            if not 10 < len(str(error)) < 5000:
                problem = f"an error of {len(str(error))} characters: {str(error)[:200]}"
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        taken = time.monotonic() - began
        swollen = (_status("VmHWM") - held) / 1e6
        if unchanged and not problem and contents(unchanged) != before:
            problem = "it wrote"
        pipe.send(Outcome(number, refused, taken, swollen, problem))
    os._exit(0)  # threads that a library left do not matter


def _status(name: str) -> int:
    """Bytes of this process's memory, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder by its place, hashed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
