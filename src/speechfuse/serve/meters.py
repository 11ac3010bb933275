"""What a service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """Of one service, so that two in a process do not mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        name = "speechfuse"
        self._requests = Counter(
            f"{name}_requests", "Requests by how they ended.", ["status"], registry=registry
        )
        self._latency = Histogram(
            f"{name}_request_seconds",
            "From the first byte to the answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self._audio = Counter(
            f"{name}_audio_seconds", "Audio given to the model.", registry=registry
        )
        self._batches = Histogram(
            f"{name}_batch_recordings",
            "Recordings answered together.",
            buckets=COUNTS,
            registry=registry,
        )
        self._inside = Gauge(f"{name}_inside", "Requests being served now.", registry=registry)

    def watch(self, inside: Callable[[], float]) -> None:
        """inside: tells how many requests are being served."""
        self._inside.set_function(inside)

    def request(self, status: int, seconds: float) -> None:
        """status: 499 where the client left."""
        self._requests.labels(str(status)).inc()
        self._latency.observe(seconds)

    def batch(self, recordings: int, seconds: float) -> None:
        self._batches.observe(recordings)
        self._audio.inc(seconds)

    def text(self) -> bytes:
        """In the format of Prometheus."""
        return generate_latest(self._registry)
