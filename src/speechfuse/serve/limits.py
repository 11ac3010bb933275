"""What strangers may ask of a service at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Past each of them a request is refused with what was found and what is allowed."""

    upload_mb: float = 50.0  # of one request
    duration: float = 600.0  # seconds of one recording
    queue: int = 64  # requests at once, from the first byte to the answer
    backlog: float = 3600.0  # seconds of audio that are held at once, 64 kB each
    timeout: float = 120.0  # seconds for one request, upload included
    wait_ms: float = 10.0  # that the first request of a batch waits for others
    batch_seconds: float = 60.0  # audio that is answered at once

    @property
    def upload_bytes(self) -> int:
        return round(self.upload_mb * 1e6)
