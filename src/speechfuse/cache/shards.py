"""One safetensors file with the layers of some utterances, whole and checked or not there.

Each utterance is one tensor (L, T, D) under its key. With int8 there is another one beside it,
KEY.scale (L, D) float32: the largest size of each channel in each layer, over 127.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speechfuse.errors import DataError, RunError

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
}
SCALE = ".scale"
FACTS = "speechfuse"  # the entry in a shard's header
SHARDS = "[0-9a-f]" * 16 + ".safetensors"  # what they are called, as a pattern
INT8 = "int8"  # in it: the sum of squares of what int8 changed, and that of what was stored
_ABANDONED = 24 * 3600.0  # seconds after which a half-written file of another machine is no one's


def _host() -> str:
    """The machine within which a process is told by its number: since it began, this container."""
    told = ""
    with suppress(OSError):  # where the system says so
        told = Path("/proc/sys/kernel/random/boot_id").read_text()
        told += str(Path("/proc/self/ns/pid").readlink())
    name = socket.gethostname().replace(".", "-")
    return f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


HOST = _host()


def stored(layers: Tensor, dtype: str) -> dict[str, Tensor]:
    """What is kept of one utterance's layers (L, T, D), by the ending of its name."""
    if dtype != "int8":
        return {"": layers.to(DTYPES[dtype])}
    scale = layers.float().abs().amax(dim=1).clamp_min(1e-12) / 127
    return {"": (layers.float() / scale[:, None]).round().to(torch.int8), SCALE: scale}


def restored(values: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """Write layers (L, T, D) as they were stored into float32 ones of their shape."""
    if scale is None:
        out.copy_(values)
        return
    for layer, steps, into in zip(values, scale, out, strict=True):  # one stays in the cache
        into.copy_(layer).mul_(steps)


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], layers: Sequence[int], **facts: Any
) -> None:
    """Write the file whole or not at all, to be read by whom the umask lets.

    facts: what else its header tells.

    Raises:
        DataError: the disk is full, or nothing may be written there.
    """
    facts = {"layers": list(layers), "xxh3_128": _checksum(tensors, layers), **facts}
    about = {FACTS: json.dumps(facts)}  # one entry, whose order cannot change
    write_tensors(path, dict(tensors), about)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all, to be read by whom the umask lets.

    Raises:
        DataError: the disk is full, or nothing may be written there.
    """
    part = path.with_name(f"{path.stem}.{HOST}.{os.getpid()}.part")
    made = part / path.name
    try:
        part.mkdir()  # the library writes into a file of its own first, which a kill would leave
        made.touch()
        mode = made.stat().st_mode & 0o777
        save_file(tensors, made, metadata)  # for its owner alone
        made.chmod(mode)
        made.replace(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write {path} ({error}); what was finished is kept: make room or choose "
            "another folder, and run it again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all, and with it the folder that it lies in.

    Raises:
        DataError: nothing can be written there.
    """
    part = path.with_name(f"{path.stem}.{HOST}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise DataError(
            f"cannot write in {path.parent} ({error}); choose another folder with store.folder"
        ) from error


def open_shard(path: Path) -> Any:
    """A memory-mapped file; tensors are read when they are asked for.

    Raises:
        RunError: it is gone or no safetensors file.
    """
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged or gone ({error}); run it again to remake it") from error


def shard_layers(handle: Any) -> tuple[int, ...]:
    """Which layers an open shard has; none if it does not say."""
    return tuple(_facts(handle).get("layers", ()))


def int8_sums(path: Path) -> tuple[float, float]:
    """Squares of what int8 changed in a shard, and of what was stored; zeros if it does not say.

    Raises:
        RunError: it is gone or no safetensors file.
    """
    wrong, size = _facts(open_shard(path)).get(INT8, (0.0, 0.0))
    return wrong, size


def _facts(handle: Any) -> dict[str, Any]:
    with suppress(KeyError, TypeError, ValueError):
        return dict(json.loads(handle.metadata()[FACTS]))
    return {}


def is_whole(path: Path) -> bool:
    """Whether all of it is as it was written, by its checksum.

    Raises:
        OSError: it is gone, or cannot be read now.
    """
    try:
        handle = safe_open(path, "pt")
        names = handle.keys()
        tensors = {name: handle.get_tensor(name) for name in names}
        return _facts(handle).get("xxh3_128") == _checksum(tensors, shard_layers(handle))
    except SafetensorError:
        return False


def _checksum(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> str:
    """XXH3 of names, types, shapes and values: against accident, ten times as fast as writing."""
    total = xxhash.xxh3_128(json.dumps(list(layers)).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}".encode())
        values: Any = tensor.contiguous().view(torch.uint8).numpy()
        total.update(values.reshape(-1))
    return total.hexdigest()


def sweep_parts(folder: Path) -> None:
    """Delete half-written files whose writer is no more."""
    for part in folder.glob("*.part"):
        with suppress(OSError, ValueError):  # another one's, of another name
            host, pid = part.name.split(".")[-3:-1]
            dead = host == HOST and pid.isdigit() and not is_running(int(pid))
            if dead or time.time() - part.stat().st_mtime > _ABANDONED:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def is_running(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
