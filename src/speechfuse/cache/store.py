"""The layers of one upstream by content: what is there, what is missing, and reading it.

    stores/audio.jsonl                 hashes of audio files, as long as they stay as they are
    stores/checked.jsonl               checksums of shards, likewise
    stores/0123456789abcdef/           one upstream with all that decides its layers
        about.json                     the same in words
        plan-*.json                    which utterances are in which shard: the index
        *.safetensors                  shards, see shards.py

An utterance is known by its audio's bytes and its span, so that files may be renamed and moved.
Nothing that is there is ever changed: a shard is there whole or not at all, and several processes
may read and write at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechfuse.cache import shards
from speechfuse.cache.memo import Memo, absolute, audio_hashes, file_sha256
from speechfuse.cache.plans import Shard, read_plans
from speechfuse.errors import DataError
from speechfuse.memory import BATCHES
from speechfuse.types import LayerStack, StackSpec, Utterance

log = logging.getLogger(__name__)


class Store:
    """The stacks of one upstream with fixed settings, by utterance."""

    def __init__(
        self,
        root: Path,
        about: dict[str, Any],
        spec: StackSpec,
        dtype: str,
        layers: Sequence[int] | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        """root: of all stores; this one has its own folder inside, named by the hash of `about`.

        layers: which of the upstream's layers the spec means; all of them, from 0, if left out.
        pooled: there is one vector for each utterance, T = 1.
        """
        self._pooled = pooled
        self.root, self.spec, self.dtype = root, spec, dtype
        self.error: float | None = None  # of what was stored by this one as int8, relative
        self.layers = tuple(range(spec.num_layers) if layers is None else layers)
        self._about = json.dumps(about | {"dtype": dtype}, sort_keys=True, indent=1)
        self.folder = root / hashlib.sha256(self._about.encode()).hexdigest()[:16]
        self._where: dict[str, list[Path]] = {}
        self._layers: dict[Path, tuple[int, ...]] = {}
        self._keys: dict[Path, tuple[str, ...]] = {}
        self._handles: dict[Path, Any] = {}
        self.look()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: another process opens its own."""
        return self.__dict__ | {"_handles": {}}

    def look(self) -> None:
        """See which shards are here now."""
        self._where, self._layers, self._keys = {}, {}, {}
        found = {path.stem: path for path in sorted(self.folder.glob("*.safetensors"))}
        for shard in read_plans(self.folder):
            if path := found.pop(shard.name, None):
                self._enter(path, shard.layers, shard.keys)
        for path in found.values():  # without a plan: its own header tells
            handle = shards.open_shard(path)
            names = handle.keys()
            keys = tuple(name for name in names if not name.endswith(shards.SCALE))
            self._enter(path, shards.shard_layers(handle), keys)
        self._handles = {path: h for path, h in self._handles.items() if path in self._layers}

    def _enter(self, path: Path, layers: tuple[int, ...], keys: tuple[str, ...]) -> None:
        self._layers[path], self._keys[path] = layers, keys
        for key in keys:
            self._where.setdefault(key, []).append(path)

    def _holder(self, key: str, layer: int) -> Path | None:
        """The first shard that has a layer of an utterance."""
        paths = self._where.get(key, ())
        return next((path for path in paths if layer in self._layers[path]), None)

    def key(self, utterance: Utterance) -> str:
        """What the stored layers depend on beside the upstream: the audio's bytes, the span, and
        how it is altered."""
        digest = audio_hashes(self.root).ask(absolute(utterance.audio), file_sha256)
        span = f"{utterance.start:.6f}|{utterance.duration or 0:.6f}"
        if (how := utterance.alteration) is not None:
            noise: Path | str | None = how.noise
            if isinstance(noise, Path):
                noise = audio_hashes(self.root).ask(absolute(noise), file_sha256)
            span += f"|{how.speed:g}|{noise}|{how.snr:g}|{how.seed}"
        return hashlib.sha256(f"{digest}|{span}".encode()).hexdigest()[:24]

    def keys(self, utterances: Iterable[Utterance]) -> dict[str, Utterance]:
        """Utterances by their keys, each once; hashes that are new are kept for next time.

        Raises:
            DataError: an audio file is gone.
        """
        try:
            return {self.key(u): u for u in utterances}
        except OSError as error:
            raise DataError(f"cannot read audio: {error}; prepare the corpus again") from error
        finally:
            audio_hashes(self.root).save()

    def lacks(self, key: str) -> tuple[int, ...]:
        """The wanted layers of an utterance that are not here."""
        return tuple(layer for layer in self.layers if self._holder(key, layer) is None)

    def missing(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """Those of which a wanted layer is not here yet, each once."""
        return [u for key, u in self.keys(utterances).items() if self.lacks(key)]

    def path(self, shard: Shard) -> Path:
        """Where a shard of a plan lies, or will lie."""
        return self.folder / f"{shard.name}.safetensors"

    def shards_of(self, keys: Iterable[str]) -> set[Path]:
        """The files that hold the wanted layers of these utterances, by their keys."""
        return {
            path
            for key in keys
            for layer in self.layers
            if (path := self._holder(key, layer)) is not None
        }

    def bytes_for(self, seconds: float, layers: int | None = None, utterances: float = 1) -> float:
        """Size of so many layers of so much audio; of all that are wanted if left out.

        utterances: in that audio; they count where there is one vector for each.
        """
        count = len(self.layers) if layers is None else layers
        width = shards.DTYPES[self.dtype].itemsize
        frames = utterances if self._pooled else seconds * self.spec.frame_rate
        return frames * count * self.spec.dim * width

    def check(self, keys: Iterable[str], *, again: bool = False) -> list[Path]:
        """Delete the shards of these utterances that are not as they were written; returns them.

        again: also those that were found whole before and have not changed since.
        """
        memo = Memo(self.root / "checked.jsonl", changes=False)
        damaged = []
        for path in sorted(self.shards_of(keys)):
            with suppress(OSError):
                if (again or memo.get(path) is None) and not shards.is_whole(path):
                    log.warning("%s is damaged; it is deleted and made again", path)
                    path.unlink(missing_ok=True)
                    damaged.append(path)
                    continue
                memo.put(path, "whole")
                self._used(path)
        memo.save()
        if damaged:
            self.look()
        return damaged

    def describe(self) -> None:
        """Write what all of this is of beside it.

        Raises:
            DataError: nothing can be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "about.json").write_text(self._about + "\n")
        except OSError as error:
            raise DataError(
                f"cannot write in {self.folder} ({error}); choose another folder with store.folder"
            ) from error

    def read(self, utterance: Utterance, span: slice = slice(None)) -> Tensor:
        """The wanted layers of one utterance, or of a span of its frames: (L, T, D) float32."""
        key = self.key(utterance)
        out = BATCHES.empty(len(self.layers), self._size(key, span), self.spec.dim)
        self._read(key, self.layers, span, out)
        return out

    def layer(self, utterance: Utterance, index: int) -> Tensor:
        """The index-th wanted layer of one utterance, no other is read: (T, D) float32."""
        key = self.key(utterance)
        out = BATCHES.empty(1, self._size(key, slice(None)), self.spec.dim)
        self._read(key, (self.layers[index],), slice(None), out)
        return out[0]

    def frames(self, utterance: Utterance) -> int:
        """Number of frames of one utterance, from the shard's header."""
        return self._size(self.key(utterance), slice(None))

    def batch(
        self, utterances: Sequence[Utterance], spans: Sequence[slice] | None = None
    ) -> LayerStack:
        """Several utterances side by side in float32, zeros on the right.

        spans: the frames of each that are wanted, only they are read.
        """
        keys = [self.key(u) for u in utterances]
        wanted = spans or [slice(None)] * len(keys)
        sizes = [self._size(key, span) for key, span in zip(keys, wanted, strict=True)]
        padded = BATCHES.empty(len(self.layers), len(keys), max(sizes), self.spec.dim)
        for row, (key, span, size) in enumerate(zip(keys, wanted, sizes, strict=True)):
            padded[:, row, size:] = 0
            self._read(key, self.layers, span, padded[:, row, :size])
        return LayerStack(tuple(padded), torch.tensor(sizes), self.spec.frame_rate)

    def _size(self, key: str, span: slice) -> int:
        """Frames of a span of an utterance."""
        handle = self._handle(self._found(key, self.layers[0]))
        shape: list[int] = handle.get_slice(key).get_shape()
        return len(range(*span.indices(shape[1])))

    def _read(self, key: str, layers: Sequence[int], span: slice, out: Tensor) -> None:
        """From the mapped file into `out` (L, T, D), in as few pieces as it lies there."""
        begin = 0
        while begin < len(layers):
            path = self._found(key, layers[begin])
            handle = self._handle(path)
            there = self._layers[path]
            first = there.index(layers[begin])
            end = begin + 1
            while end < len(layers) and there[first : first + end - begin + 1] == tuple(
                layers[begin : end + 1]
            ):
                end += 1
            rows = slice(first, first + end - begin)
            scale = handle.get_tensor(key + shards.SCALE)[rows] if self.dtype == "int8" else None
            shards.restored(handle.get_tensor(key)[rows, span], scale, out[begin:end])
            begin = end

    def _found(self, key: str, layer: int) -> Path:
        path = self._holder(key, layer)
        assert path is not None, "read before it was filled"
        return path

    def _handle(self, path: Path) -> Any:
        if path not in self._handles:
            self._handles[path] = shards.open_shard(path)
            self._used(path)
        return self._handles[path]

    def _used(self, path: Path) -> None:
        """What was used last is evicted last; the time of the last change stays."""
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def evict(root: Path, needed: float, budget: float, keep: set[Path]) -> list[Path]:
    """Delete what was not used for the longest time, until what is needed fits; returns it.

    budget: bytes of all shards in all stores. keep: shards that are not to be deleted.
    """
    sizes = {}
    for path in root.glob("*/*.safetensors"):
        with suppress(OSError):
            sizes[path] = (path.stat().st_atime_ns, path.stat().st_size)
    excess = sum(size for _, size in sizes.values()) + needed - budget
    gone = []
    for path in sorted(sizes.keys() - keep, key=lambda p: (sizes[p][0], str(p))):
        if excess <= 0:
            break
        with suppress(OSError):
            path.unlink()
            excess -= sizes[path][1]
            gone.append(path)
    return gone


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds (or will hold) this folder."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
