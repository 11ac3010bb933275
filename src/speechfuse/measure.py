"""What computations take: seconds, one after another in turns, and memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechfuse.errors import RunError, SpeechFuseError

Call = Callable[[], object]
Clock = Callable[[], float]
Device = Literal["all", "cpu", "cuda"]


def devices(asked: Device) -> list[str]:
    """Those to measure on; all: the CPU, and a GPU if there is one.

    Raises:
        SpeechFuseError: there is no GPU and it is asked for.
    """
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if asked != "all" and asked not in there:
        raise SpeechFuseError("no CUDA GPU that torch can use here; measure with --device cpu")
    return there if asked == "all" else [asked]


def best_device() -> torch.device:
    """Where upstreams are run: on the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def asked_device(name: str | None) -> torch.device:
    """The device of this name, tried; the best one, if none is named.

    Raises:
        RunError: torch knows none of this name, or cannot use it here.
    """
    if name is None:
        return best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device says it in its own way
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise RunError(
            f"no device '{name}' that torch can use here; choose from: {', '.join(there)}"
        ) from error
    return device


def median_seconds(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Median time of each; they take turns, so that a busy machine is busy for all of them."""
    return {name: median(times) for name, times in seconds_in_turns(calls, repeats).items()}


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Of one to the other within a turn, which what else the machine does spares most."""
    return median(one / other for one, other in zip(times, others, strict=True))


def seconds_in_turns(
    calls: Mapping[str, Call],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Times of each, turn by turn, after so many turns that do not count.

    clock: time.process_time counts what the processor does for this process, in all its threads,
    whatever else the machine does.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            _wait()
            began = clock()
            call()
            _wait()
            if turn >= warm_up:
                taken[name].append(clock() - began)
    return taken


def setting(repeats: int, clock: Callable[[], float] = time.perf_counter) -> str:
    """How times are taken, for the title of a table."""
    threads = torch.get_num_threads()
    text = f"{threads} thread{'s' * (threads > 1)}, medians of {repeats}"
    return text + ", processor time" * (clock is time.process_time)


def product_rate(device: torch.device, size: int = 1024) -> float:
    """Multiply-adds a second of a square float32 matrix product, the best of five."""
    left, right = torch.randn(2, size, size, device=device)
    times = seconds_in_turns({"product": lambda: left @ right}, 5)["product"]
    return size**3 / min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(call: Call) -> int:
    """The most memory that tensors made within the call hold at one time, its result included."""
    seen = _Allocations()
    with seen:
        call()
    return seen.peak


class _Allocations(TorchDispatchMode):
    """Follows the storages that operations return until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self._now = 0, 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # what a mode is asked before it imports the compiler
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _address(tensor) not in self._known | given:
                self._follow(tensor)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        size = storage.nbytes()
        self._known.add(address)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, address, size)

    def _freed(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
