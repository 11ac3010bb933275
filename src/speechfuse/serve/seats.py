"""How many requests are inside at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from speechfuse.serve.refusals import Refusal


class Seats:
    """One for each request from its first byte to its end, however it ends."""

    def __init__(self, count: int) -> None:
        self.count, self.taken, self._lock = count, 0, Lock()

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Raises Refusal (503) if none is free."""
        with self._lock:
            if self.taken >= self.count:
                raise Refusal(
                    503, f"{self.taken} requests at once", f"at most {self.count}", "try again soon"
                )
            self.taken += 1
        try:
            yield
        finally:
            with self._lock:
                self.taken -= 1
