"""The layers of one upstream by content: what is there, what is missing, and reading it.

    stores/audio.jsonl                 hashes of audio files, as long as they stay as they are
    stores/checked.jsonl               checksums of shards, likewise
    stores/0123456789abcdef/           one upstream with all that decides its layers
        about.json                     the same in words
        plan-*.json                    which utterances are in which shard: the index
        *.safetensors                  shards, see shards.py
        *.claim, *.use                 who makes a shard, who reads which: claims.py, uses.py

An utterance is known by its audio's bytes and its span, so that files may be renamed and moved.
Nothing that is there is ever changed: a shard is there whole or not at all, and several processes
may read and write at once.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechfuse.cache import shards
from speechfuse.cache.claims import claimed
from speechfuse.cache.memo import Memo, absolute, audio_hashes, file_sha256
from speechfuse.cache.plans import Shard, read_plans
from speechfuse.cache.uses import Use, in_use
from speechfuse.errors import DataError, RunError
from speechfuse.memory import BATCHES
from speechfuse.types import LayerStack, Progress, StackSpec, Utterance

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
        self.layers = tuple(range(spec.num_layers) if layers is None else layers)
        self._about = json.dumps(about | {"dtype": dtype}, sort_keys=True, indent=1)
        self.folder = root / _name(self._about)
        self._where: dict[str, list[Path]] = {}
        self._layers: dict[Path, tuple[int, ...]] = {}
        self._keys: dict[Path, tuple[str, ...]] = {}
        self._handles: dict[Path, Any] = {}
        self._damaged: list[Path] = []  # of which nobody knows what they hold
        self._asked: dict[tuple[Any, ...], str] = {}  # keys of utterances
        self._use: Use | None = None
        self.look()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: another process opens its own. What is held is the first one's."""
        return self.__dict__ | {"_handles": {}, "_use": None}

    def look(self) -> None:
        """See which shards are here now."""
        self._where, self._layers, self._keys, self._damaged = {}, {}, {}, []
        found = {path.stem: path for path in sorted(self.folder.glob(shards.SHARDS))}
        for shard in read_plans(self.folder):
            if path := found.pop(shard.name, None):
                self._enter(path, shard.layers, shard.keys)
        for path in found.values():  # without a plan: its own header tells
            try:
                handle = shards.open_shard(path)
            except RunError:
                self._damaged.append(path)
                continue
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

        By these keys they are read from now on, whatever becomes of their audio.

        Raises:
            DataError: an audio file is gone.
        """
        found = {}
        try:
            for u in utterances:
                key = self._asked[_what(u)] = self.key(u)
                found[key] = u
            return found
        except OSError as error:
            raise DataError(f"cannot read audio: {error}; prepare the corpus again") from error
        finally:
            audio_hashes(self.root).save()

    def _key(self, utterance: Utterance) -> str:
        """As it was when the utterance was asked for."""
        known = self._asked.get(_what(utterance))
        return known or next(iter(self.keys([utterance])))

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

    def int8_error(self, keys: Iterable[str]) -> float | None:
        """Of what is stored of these utterances, relative root mean square; None if not known."""
        sums = [shards.int8_sums(path) for path in sorted(self.shards_of(keys))]
        wrong, size = (sum(column) for column in zip((0.0, 0.0), *sums, strict=True))
        return (wrong / size) ** 0.5 if size else None

    def bytes_for(self, seconds: float, layers: int | None = None, utterances: float = 1) -> float:
        """Size of so many layers of so much audio; of all that are wanted if left out.

        utterances: in that audio; int8 has scales for each, and where it is pooled there is one
        vector for each.
        """
        count = len(self.layers) if layers is None else layers
        width = shards.DTYPES[self.dtype].itemsize
        frames = utterances if self._pooled else seconds * self.spec.frame_rate
        scales = 4 * utterances if self.dtype == "int8" else 0
        return (frames * width + scales) * count * self.spec.dim

    def hold(self, paths: Iterable[Path]) -> None:
        """Keep these shards from being evicted, there already or not, while this store is used."""
        self._use = self._use or Use(self.folder)
        self._use.add(paths)

    def check(
        self, keys: Iterable[str], *, again: bool = False, progress: Progress | None = None
    ) -> list[Path]:
        """Delete the shards of these utterances that are not as they were written; returns them.

        Those go with them of which nobody can say what they hold. again: look also at those that
        were found whole before and have not changed since.
        """
        memo = Memo(self.root / "checked.jsonl", changes=False)
        paths, damaged, gone = sorted(self.shards_of(keys)), [*self._damaged], False
        unknown = []
        for path in paths:
            try:
                if again or memo.get(path) is None:
                    unknown.append(path)
                self._used(path)
            except FileNotFoundError:
                gone = True
        try:
            for number, path in enumerate(unknown, start=1):
                with suppress(OSError):
                    if not shards.is_whole(path):
                        damaged.append(path)
                    elif memo.get(path) is None:
                        memo.put(path, "whole")
                if progress:
                    progress("shards checked", number, len(unknown))
        finally:
            memo.save()
        for path in damaged:
            self._delete(path)
        if damaged or gone:
            self.look()
        return damaged

    def _delete(self, path: Path) -> None:
        """One that is damaged, unless another process has it in hand or has just made it anew."""
        with suppress(OSError, DataError), claimed(path) as mine:
            if mine and not shards.is_whole(path):
                log.warning("%s is damaged; it is deleted and made again", path)
                path.unlink(missing_ok=True)

    def describe(self) -> None:
        """Write what all of this is of beside it.

        Raises:
            DataError: nothing can be written there.
        """
        shards.write_text(self.folder / "about.json", self._about + "\n")

    def read(self, utterance: Utterance, span: slice = slice(None)) -> Tensor:
        """The wanted layers of one utterance, or of a span of its frames: (L, T, D) float32.

        Raises:
            DataError: it was not asked for before, and its audio is gone.
            RunError: it is not there, or no more.
        """
        key = self._key(utterance)
        out = BATCHES.empty(len(self.layers), self._size(key, span), self.spec.dim)
        self._read(key, self.layers, span, out)
        return out

    def layer(self, utterance: Utterance, index: int) -> Tensor:
        """The index-th wanted layer of one utterance, no other is read: (T, D) float32."""
        key = self._key(utterance)
        out = BATCHES.empty(1, self._size(key, slice(None)), self.spec.dim)
        self._read(key, (self.layers[index],), slice(None), out)
        return out[0]

    def frames(self, utterance: Utterance) -> int:
        """Number of frames of one utterance, from the shard's header."""
        return self._size(self._key(utterance), slice(None))

    def batch(
        self, utterances: Sequence[Utterance], spans: Sequence[slice] | None = None
    ) -> LayerStack:
        """Several utterances side by side in float32, zeros on the right.

        spans: the frames of each that are wanted, only they are read.
        """
        keys = [self._key(u) for u in utterances]
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
        if path is None:
            audio = next(what[0] for what, known in self._asked.items() if known == key)
            raise RunError(
                f"layer {layer} of {audio} is not in {self.folder}: it was deleted, or the audio "
                "changed, since the run began; run it again"
            )
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


def _what(utterance: Utterance) -> tuple[Any, ...]:
    """What of an utterance its key depends on, but for the bytes of its audio."""
    return utterance.audio, utterance.start, utterance.duration, utterance.alteration


def _name(about: str) -> str:
    """Of a store's folder."""
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _stores(root: Path) -> Iterator[Path]:
    """The folders that are stores; others may lie beside them."""
    for path in root.glob("*/about.json"):
        with suppress(OSError, ValueError):
            if _name(path.read_text().removesuffix("\n")) == path.parent.name:
                yield path.parent


def evict(root: Path, needed: float, budget: float, keep: set[Path]) -> list[Path]:
    """Delete what was not used for the longest time, until what is needed fits; returns it.

    budget: bytes of all shards in all stores. keep: shards that are not to be deleted; neither are
    those that runs at work read.

    Raises:
        DataError: these leave too little room, and nothing was deleted.
    """
    if used := in_use(root) - keep:
        gc.collect()  # what a run of this process held that has ended
        used = in_use(root) - keep
    sizes = {}
    for path in (path for folder in _stores(root) for path in folder.glob(shards.SHARDS)):
        with suppress(OSError):
            sizes[path] = (path.stat().st_atime_ns, path.stat().st_size)
    excess = sum(size for _, size in sizes.values()) + needed - budget
    held = sum(sizes[path][1] for path in used & sizes.keys())
    free = sorted(sizes.keys() - keep - used, key=lambda p: (sizes[p][0], str(p)))
    if held and excess > sum(sizes[path][1] for path in free):
        raise DataError(
            f"{needed / 1e9:.1f} GB of layers are to come into {root}, runs at work read "
            f"{held / 1e9:.1f} GB that are there, and store.budget_gb is {budget / 1e9:g}; raise "
            "it, or wait until they have ended"
        )
    gone = []
    for path in free:
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
