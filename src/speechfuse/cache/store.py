"""Layer stacks of one upstream in safetensors shards: each utterance one tensor (L, T, D).

The names in the shards' headers are the index: a shard is there whole (it is renamed into place)
or not at all, several writers cannot disturb each other, and an interrupted extraction goes on
with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speechfuse.errors import DataError, RunError
from speechfuse.types import LayerStack, StackSpec, Utterance

SHARD_BYTES = 128 << 20
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Store:
    """The stacks of one upstream with fixed settings, by utterance."""

    def __init__(self, folder: Path, about: dict[str, Any], spec: StackSpec, dtype: str) -> None:
        """folder: of all stores; this one has its own inside, named by the hash of `about`."""
        self.spec, self.dtype = spec, DTYPES[dtype]
        text = json.dumps(about | {"dtype": dtype}, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._about = text
        self._handles: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        self._look()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: another process opens its own."""
        return self.__dict__ | {"_handles": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._look()

    def _look(self) -> None:
        """Read the headers of shards that are new since the last look."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._handles:
                continue
            try:
                handle = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise RunError(
                    f"{path} is damaged ({error}); delete it, it is made again"
                ) from error
            self._handles[path] = handle
            for name in handle.keys():  # noqa: SIM118  (a handle is no mapping)
                self._where.setdefault(name, path)

    def missing(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """Those whose stacks are not here yet, each once."""
        wanted = {utterance_key(u): u for u in utterances}
        return [u for key, u in wanted.items() if key not in self._where]

    def bytes_for(self, seconds: float) -> int:
        """Size of the stacks of so much audio."""
        frames = seconds * self.spec.frame_rate
        width = torch.finfo(self.dtype).bits // 8
        return round(frames * self.spec.num_layers * self.spec.dim * width)

    def writer(self) -> Writer:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "about.json").write_text(self._about + "\n")
        return Writer(self)

    def read(self, utterance: Utterance, span: slice = slice(None)) -> Tensor:
        """All layers of one utterance, or of a span of its frames: (L, T, D), stored dtype."""
        key = utterance_key(utterance)
        handle = self._handles[self._where[key]]
        if span == slice(None):
            tensor: Tensor = handle.get_tensor(key)
        else:
            tensor = handle.get_slice(key)[:, span]
        return tensor

    def layer(self, utterance: Utterance, index: int) -> Tensor:
        """One layer of one utterance, no other is read: (T, D), stored dtype."""
        key = utterance_key(utterance)
        tensor: Tensor = self._handles[self._where[key]].get_slice(key)[index]
        return tensor

    def frames(self, utterance: Utterance) -> int:
        """Number of frames of one utterance, from the shard's header."""
        key = utterance_key(utterance)
        shape: list[int] = self._handles[self._where[key]].get_slice(key).get_shape()
        return shape[1]

    def batch(
        self, utterances: Sequence[Utterance], spans: Sequence[slice] | None = None
    ) -> LayerStack:
        """Several utterances side by side in float32, zeros on the right.

        spans: the frames of each that are wanted, only they are read.
        """
        wanted = spans or [slice(None)] * len(utterances)
        tensors = [self.read(u, span) for u, span in zip(utterances, wanted, strict=True)]
        lengths = torch.tensor([t.shape[1] for t in tensors])
        first = tensors[0]
        padded = torch.zeros(first.shape[0], len(tensors), int(lengths.max()), first.shape[2])
        for row, tensor in enumerate(tensors):
            padded[:, row, : tensor.shape[1]] = tensor
        return LayerStack(tuple(padded), lengths, self.spec.frame_rate)


class Writer:
    """Collects stacks and writes a shard whenever enough have come; use as a context manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None or kind is KeyboardInterrupt:
            self.flush()

    def add(self, utterance: Utterance, layers: Sequence[Tensor]) -> None:
        """The L layers (T, D) of one utterance.

        Raises:
            DataError: a value that is not finite in the store's type.
        """
        tensor = torch.stack([layer.to("cpu", self._store.dtype) for layer in layers])
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"a layer of utterance {utterance.id} is not finite as {self._store.dtype}: hidden "
                f"states up to {max(float(layer.abs().max()) for layer in layers):.3g}; with "
                "float16 try store.dtype=bfloat16, else look at the clip"
            )
        self._tensors[utterance_key(utterance)] = tensor
        self._bytes += tensor.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has come as one shard, then make it visible."""
        if not self._tensors:
            return
        name = hashlib.sha256("".join(sorted(self._tensors)).encode()).hexdigest()[:16]
        path = self._store.folder / f"{name}.safetensors"
        write_tensors(path, self._tensors)
        self._tensors, self._bytes = {}, 0
        self._store._look()


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all, to be read by whom the umask lets."""
    part = path.with_suffix(f".part{os.getpid()}")
    part.touch()
    mode = part.stat().st_mode & 0o777
    save_file(tensors, part, metadata)  # for its owner alone
    part.chmod(mode)
    part.replace(path)


def utterance_key(utterance: Utterance) -> str:
    """What the stored stack depends on: the file as it is now, and the span."""
    stat = utterance.audio.stat()
    text = f"{utterance.audio.resolve()}|{stat.st_mtime_ns}|{stat.st_size}"
    span = f"{utterance.start:.6f}|{utterance.duration or 0:.6f}"
    return hashlib.sha256(f"{text}|{span}".encode()).hexdigest()[:24]


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds (or will hold) this folder."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
