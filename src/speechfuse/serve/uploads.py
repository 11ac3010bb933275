"""What a client sends, as samples: streamed into a file without a name, gone when it is read.

Above a megabyte the file is on disk, where it has no name from the beginning: whatever ends the
process, nothing is left behind. No path that a client sends is ever opened.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from speechfuse.audio import CHANNELS, RATES, SAMPLE_RATE
from speechfuse.errors import DataError
from speechfuse.pipeline.recordings import Recording, Samples
from speechfuse.serve.limits import Limits
from speechfuse.serve.refusals import FORMATS, Refusal, unreadable

SPOOL = 1 << 20  # bytes in memory, more are on disk
FIELD = 10_000  # bytes of a field beside the audio
Fields = dict[str, list[str]]


@dataclass
class Upload:
    """An open file, what the client calls it, and the fields that came with it."""

    file: IO[bytes]
    name: str
    fields: Fields = field(default_factory=dict)


@asynccontextmanager
async def received(request: Request, limits: Limits) -> AsyncGenerator[Upload, None]:
    """The body of a request; closed, and with that deleted, at the end.

    Raises:
        Refusal: of another type, too large, or not what its type says.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.upload_bytes:
        raise _too_large(int(length), limits)
    if kind == "multipart/form-data":
        upload = await _form(request, limits)
    elif kind.startswith("audio/") or kind == "application/octet-stream":
        upload = await _raw(request, limits)
    else:
        raise Refusal(
            415,
            f"a body of type '{kind[:60]}'" if kind else "a body without a type",
            "multipart/form-data with a file 'audio', audio/* or application/octet-stream",
            "set the Content-Type, as curl does with -F audio=@FILE",
        )
    try:
        yield upload
    finally:
        upload.file.close()


async def _form(request: Request, limits: Limits) -> Upload:
    parser = MultiPartParser(
        request.headers,
        _counted(request, limits),
        max_files=1,
        max_fields=16,
        max_part_size=FIELD,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:
        raise Refusal(
            400,
            f"a form that cannot be read ({getattr(error, 'message', error)})",
            "multipart/form-data with one file 'audio'",
            "send it as curl does with -F audio=@FILE",
        ) from error
    fields: Fields = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
    given = form.get("audio")
    if not isinstance(given, UploadFile):
        await form.close()
        raise Refusal(
            400,
            f"a form with {', '.join(sorted(form)) or 'nothing'}"[:200],
            "one file 'audio' in it",
            "send it as curl does with -F audio=@FILE",
        )
    return Upload(given.file, shown_name(given.filename), fields)


async def _raw(request: Request, limits: Limits) -> Upload:
    file = SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115 - closed by `received`
    try:
        async for chunk in _counted(request, limits):
            await run_in_threadpool(file.write, chunk)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(file, "upload")


async def _counted(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, as far as it is allowed to go."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.upload_bytes:
            raise _too_large(size, limits)
        yield chunk


def _too_large(size: int, limits: Limits) -> Refusal:
    return Refusal(
        413,
        f"{size / 1e6:.1f} MB or more",
        f"at most {limits.upload_mb:g} MB",
        "send a shorter recording, or a compressed one such as FLAC or OGG",
    )


def shown_name(name: str | None) -> str:
    """What a client calls a file, fit for an answer: no folders, no control characters."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:100] or "upload"


def decode(file: Any, name: str, limits: Limits) -> Samples:
    """16 kHz mono samples of an open file, no more than the limit.

    Raises:
        Refusal: no recording (422), or too long a one (413).
    """
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            rate, channels = sound.samplerate, sound.channels
            seconds = sound.frames / rate
    except (
        soundfile.LibsndfileError,
        RuntimeError,
        TypeError,
        OSError,
        ZeroDivisionError,
    ) as error:
        why = str(getattr(error, "error_string", error)).rstrip(".")
        raise Refusal(
            422,
            f"{name} is no recording that can be decoded ({why})",
            f"{FORMATS}",
            "convert it with: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac",
        ) from error
    if not RATES[0] <= rate <= RATES[1] or channels > CHANNELS:
        raise Refusal(
            422,
            f"{name} with {channels} channels at {rate} Hz",
            f"at most {CHANNELS} channels at {RATES[0]} to {RATES[1]} Hz",
            "convert it with: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac",
        )
    if seconds > limits.duration:
        raise _too_long(name, seconds, limits)
    file.seek(0)
    recording, parts, done = Recording(file), [], 0.0
    recording.name = name
    try:
        for start, samples in recording.stretches(min(20.0, limits.duration)):
            done = start + len(samples) / SAMPLE_RATE
            if done > limits.duration + 0.01:  # whatever its header said
                raise _too_long(name, done, limits)
            parts.append(samples)
    except DataError as error:
        raise unreadable(error) from error
    return np.concatenate(parts)


def _too_long(name: str, seconds: float, limits: Limits) -> Refusal:
    return Refusal(
        413,
        f"{name} with {seconds:.1f} s or more",
        f"at most {limits.duration:g} s",
        "cut it into shorter recordings",
    )
