"""Notice soon that one of the processes that train together is lost, and say which."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

PERIOD = 2.0  # seconds between two signs of life
SILENCE = 20.0  # seconds without one; torchrun kills those that it has asked to end after 30
AGAIN = "run it again to go on from the last score"
_FAILED = "speechfuse/failed"


class Watch:
    """A thread that shows that its process lives, and looks at the next one of the circle.

    Whoever is killed, hangs or has lost its machine is missed by the one before it, who tells all:
    however many there are, each reads two values every other second.
    """

    def __init__(
        self,
        store: Any,
        number: int,
        names: Sequence[str],
        lost: Callable[[str], None],
        silence: float = SILENCE,
    ) -> None:
        """store: that all share. number: of this process. names: of all of them.

        lost: is told the reason, in the thread. silence: seconds after which one is missed.
        """
        self._store, self._number, self._names, self._lost = store, number, names, lost
        self._silence = silence
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def tell(self, error: BaseException) -> None:
        """All others end because of this error of our own."""
        self._blame(f"{self._names[self._number]} failed: {error}")

    def wait(self) -> None:
        """Until it is known who is lost, when there are signs that somebody is."""
        self._thread.join(self._silence + 3 * PERIOD)

    def end(self) -> None:
        """This process leaves, and is not missed.

        A thread that outlives the interpreter in a call of torch aborts the process. It is waited
        for as long as another may be silent: who keeps the store may hang.
        """
        self._over.set()
        self._thread.join(self._silence)

    def _look(self) -> None:
        beat, neighbour = 0, (self._number + 1) % len(self._names)
        seen, since = b"", time.monotonic()
        while True:
            over = self._over.is_set()
            try:
                if not over and self._store.check([_FAILED]):
                    return self._lost(self._store.get(_FAILED).decode())
                self._store.set(_alive(self._number), "left" if over else str(beat))
                if over:
                    return None
                key = _alive(neighbour)
                found = self._store.get(key) if self._store.check([key]) else b""
            except RuntimeError:
                if over or self._over.is_set():  # and so has the first, who kept the store
                    return None
                return self._lost(f"{self._names[0]} is lost, or the one that began it; {AGAIN}")
            if found != seen or found == b"left":
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > self._silence:
                self._blame(
                    f"{self._names[neighbour]} has given no sign of life for {self._silence:g} s, "
                    f"it was killed, hangs, or its machine is lost; {AGAIN}"
                )
            beat += 1
            self._over.wait(PERIOD)

    def _blame(self, text: str) -> None:
        self._store.compare_set(_FAILED, "", text)  # the first reason counts


def _alive(number: int) -> str:
    return f"speechfuse/alive/{number}"
