"""A service under load: many clients on loopback, each answer compared with the one it gave alone.

The service is a process of its own, started as `speechfuse serve` is.
"""

from __future__ import annotations

import http.client
import io
import json
import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from speechfuse.audio import SAMPLE_RATE
from speechfuse.errors import SpeechFuseError
from speechfuse.types import Table

CLOSE = 0.02  # between numbers of one recording alone and in a batch
PATIENCE = 180.0  # seconds for one answer
BOUNDARY = "speechfuse"


@dataclass
class Load:
    """What came back."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of answers
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0  # requests that nothing came back for
    wrong: int = 0  # answers that are another recording's, or differ
    heard: float = 0.0  # seconds of audio
    batch: float = 0.0  # recordings answered together, the mean

    def table(self, clients: int) -> Table:
        """For reading."""
        spread = np.percentile(self.latencies or [math.nan], [50, 95, 99, 100])
        refused = sum(n for status, n in self.statuses.items() if status != 200)
        columns = ["", "answers", "answers / s", "audio / time", "median s", "95 %", "99 %"]
        columns += ["longest", "in a batch", "refused", "lost", "wrong"]
        row = [
            f"{clients} clients, {self.seconds:.0f} s",
            f"{len(self.latencies):,}",
            f"{len(self.latencies) / self.seconds:.1f}",
            f"{self.heard / self.seconds:.1f}",
            *(f"{one:.2f}" for one in spread),
            f"{self.batch:.1f}",
            *(str(n) for n in (refused, self.lost, self.wrong)),
        ]
        return "Service under load", columns, [row]


def serve_table(run: Path, clients: int, seconds: float) -> Table:
    """Serve a run and ask it for so long."""
    with served(run) as address:
        return load_test(address, clients, seconds).table(clients)


@contextmanager
def served(run: Path) -> Iterator[tuple[str, int]]:
    """Host and port of a service that runs in a process of its own.

    Raises:
        SpeechFuseError: it does not start.
    """
    command = [sys.executable, "-m", "speechfuse.cli", "serve", str(run)]
    command += ["--port", "0", "--no-page"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            _, said, address = process.stdout.readline().strip().rpartition(" on http://")
            if not said:
                raise SpeechFuseError(f"{run} cannot be served, see above; try speechfuse serve")
            host, _, port = address.rpartition(":")
            yield host, int(port)
        finally:
            process.terminate()


def load_test(address: tuple[str, int], clients: int, seconds: float) -> Load:
    """Each client sends a recording of its own, again and again, over new connections."""
    clips = {f"clip{i}.wav": clip(i) for i in range(clients)}
    expected = {name: post(address, name, audio)[1] for name, audio in clips.items()}
    load, lock, end = Load(), threading.Lock(), monotonic() + seconds

    def ask(name: str) -> None:
        while (began := monotonic()) < end:
            try:
                status, answer = post(address, name, clips[name])
            except (OSError, http.client.HTTPException, ValueError):
                with lock:
                    load.lost += 1
                continue
            with lock:
                load.statuses[status] += 1
                if status == 200:
                    load.latencies.append(monotonic() - began)
                    load.heard += answer["duration"]
                    load.wrong += not alike(answer, expected[name])

    began = monotonic()
    threads = [threading.Thread(target=ask, args=(name,)) for name in clips]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = monotonic() - began
    load.batch = _mean_batch(address)
    return load


def clip(number: int) -> bytes:
    """A WAV file of tones and noise, 1 to 4 s, another for each number."""
    import soundfile

    random = np.random.default_rng(number)
    time = np.arange(round(SAMPLE_RATE * (1 + 3 * random.random()))) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * hz * time) for hz in random.uniform(100, 3000, 5))
    wave = 0.05 * tones * (1 + np.sin(2 * np.pi * random.uniform(2, 6) * time))
    file = io.BytesIO()
    soundfile.write(
        file, wave + 0.01 * random.standard_normal(len(time)), SAMPLE_RATE, format="WAV"
    )
    return file.getvalue()


def post(address: tuple[str, int], name: str, audio: bytes) -> tuple[int, Any]:
    """Status and JSON of `POST /v1/predict` over a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    try:
        disposition = f'Content-Disposition: form-data; name="audio"; filename="{name}"'
        body = f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + audio
        body += f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        connection.request("POST", "/v1/predict", body, kind)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def alike(one: Any, other: Any) -> bool:
    """The same but for rounding.

    >>> alike({"a": [1.0, "x"]}, {"a": [1.001, "x"]}), alike({"a": 1.0}, {"a": 2.0})
    (True, False)
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, str) or isinstance(other, str) or one is None or other is None:
        return bool(one == other)
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(abs(one - other) <= CLOSE)


def _mean_batch(address: tuple[str, int]) -> float:
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    counts = dict(line.rsplit(" ", 1) for line in lines if "batch_recordings_" in line)
    name = "speechfuse_batch_recordings"
    return float(counts[f"{name}_sum"]) / max(1.0, float(counts[f"{name}_count"]))
