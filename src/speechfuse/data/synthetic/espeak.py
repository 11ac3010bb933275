"""espeak-ng as a child process: text and prosody in, samples out.

espeak-ng is GPL-3.0 and comes from the optional package `espeakng-loader` (extra `corpus`). It is
loaded in a process of its own that runs nothing else of this project, and every utterance is
made in a fork of that process: the library carries state from one utterance to the next, a fork
starts from the same state each time, so the audio does not depend on the order.

    parent ── jobs.jsonl ──► child ── fork ──► one utterance ── samples ──► parent
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from speechfuse.errors import DataError

if TYPE_CHECKING:
    from numpy import int16
    from numpy.typing import NDArray

SAMPLE_RATE = 22050  # Hz, what espeak-ng gives
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_SYNCHRONOUS, _DONT_EXIT, _CHARS_UTF8, _SSML = 2, 0x8000, 1, 0x10


@dataclass(frozen=True, slots=True)
class Job:
    """One utterance to synthesise. `text` may hold SSML breaks."""

    text: str
    voice: str  # language+variant, e.g. en-us+s01
    rate: int  # words per minute, 80 to 450
    pitch: int  # 0 to 99, 50 is the voice's own
    range: int  # 0 to 99, 50 is the voice's own
    volume: int  # 0 to 200, 100 is the voice's own


def synthesise(jobs: Iterable[Job], variants: Mapping[str, str]) -> Iterator[NDArray[int16]]:
    """Samples of each job in order, int16 at 22,050 Hz.

    variants: espeak-ng voice variant files by name, visible to the jobs as `language+name`.

    Raises:
        DataError: espeakng-loader is not installed, or espeak-ng refused a voice.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "jobs.jsonl"
        lines = [json.dumps(dict(variants)), *(json.dumps(asdict(job)) for job in jobs)]
        order.write_text("\n".join(lines) + "\n")
        errors = Path(folder) / "stderr.txt"
        # -I: neither the user's PYTHON* variables nor the current folder decide what runs.
        command = [sys.executable, "-I", "-m", __name__, str(order), folder]
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as child,
        ):
            assert child.stdout is not None
            try:
                for _ in lines[1:]:
                    head = child.stdout.read(8)
                    if len(head) < 8:
                        child.wait()
                        raise DataError(_why(errors.read_text(errors="replace")))
                    size = int.from_bytes(head, "little")
                    yield np.frombuffer(child.stdout.read(size), "<i2")
            finally:
                child.kill()


def _why(stderr: str) -> str:
    if "espeakng_loader" in stderr:
        return (
            "the synthetic corpus needs espeak-ng, found no package espeakng-loader; "
            "install it with: pip install 'speechfuse[corpus]' (espeak-ng is GPL-3.0)"
        )
    return f"espeak-ng stopped: {stderr.strip()[-500:] or 'no message'}"


class _Espeak:
    """The library itself. Lives in the child only."""

    def __init__(self, variants: Mapping[str, str], folder: Path) -> None:
        import espeakng_loader

        data = _data_folder(Path(espeakng_loader.get_data_path()), variants, folder)
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._chunks: list[bytes] = []
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng gave {rate} Hz, expected {SAMPLE_RATE}")
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = kind(self._collect)  # kept alive as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath is noise from the clock else

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, job: Job) -> bytes:
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(job.voice.encode()):
            raise RuntimeError(f"espeak-ng knows no voice '{job.voice}'")
        settings = {_RATE: job.rate, _VOLUME: job.volume, _PITCH: job.pitch, _RANGE: job.range}
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        text = job.text.encode() + b"\0"
        flags = _CHARS_UTF8 | _SSML
        self._library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, flags, None, None)
        self._library.espeak_Synchronize()
        return b"".join(self._chunks)


def _data_folder(source: Path, variants: Mapping[str, str], folder: Path) -> Path:
    """The package's data with our variants in place of its own; links, nothing is copied."""
    data = folder / "espeak-ng-data"
    (data / "voices" / "!v").mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name != "voices":
            (data / entry.name).symlink_to(entry)
    for name, text in variants.items():
        (data / "voices" / "!v" / name).write_text(text)
    return data


def _in_fork(espeak: _Espeak, job: Job) -> bytes:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(espeak.say(job))
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        samples = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
    return samples


def _serve(order: Path, folder: Path, out: BinaryIO) -> None:
    with order.open() as lines:
        espeak = _Espeak(json.loads(next(lines)), folder)
        for line in lines:
            samples = _in_fork(espeak, Job(**json.loads(line)))
            out.write(len(samples).to_bytes(8, "little"))
            out.write(samples)
    out.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.stdout.buffer)
