"""Damage to files, drawn from a seed: bytes anywhere, and values of a JSON or YAML mapping."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ODD = (None, True, -1, 0, 2.5, "", "x", "\0", "../..", [], {}, [None], {"a": {}}, float("nan"))


def damaged(whole: bytes, seed: int) -> bytes:
    """Bits flipped, a stretch lost, doubled, moved or overwritten; a header is hit more often."""
    draw = random.Random(seed)
    data = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        size = len(data)
        reach = size if draw.random() < 0.5 else min(size, 200)
        start = draw.randrange(reach) if reach else 0
        end = min(size, start + draw.choice((1, 2, 8, 100)))
        kind = draw.choice(("flip", "cut", "lose", "double", "random", "insert", "empty"))
        if kind == "flip" and data:
            data[start] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[start:]
        elif kind == "lose":
            del data[start:end]
        elif kind == "double":
            data[start:start] = data[start:end]
        elif kind == "random":
            data[start:end] = draw.randbytes(end - start)
        elif kind == "insert":
            data[start:start] = draw.choice((b"\0", b"\xff", b"{", b"]", b'"', b"\n", b": ", b"\t"))
        elif kind == "empty" and draw.random() < 0.2:
            data.clear()
    return bytes(data)


FORMS = {  # name: format and subtype of libsndfile, rate, channels
    "pcm16.wav": ("WAV", "PCM_16", 16000, 1),
    "pcm24.wav": ("WAV", "PCM_24", 48000, 2),
    "float.wav": ("WAV", "FLOAT", 16000, 1),
    "double.wav": ("WAV", "DOUBLE", 22050, 1),
    "adpcm.wav": ("WAV", "MS_ADPCM", 16000, 1),
    "ima.wav": ("WAV", "IMA_ADPCM", 8000, 2),
    "gsm.wav": ("WAV", "GSM610", 8000, 1),
    "mulaw.au": ("AU", "ULAW", 8000, 1),
    "pcm16.flac": ("FLAC", "PCM_16", 16000, 1),
    "pcm24.flac": ("FLAC", "PCM_24", 44100, 2),
    "vorbis.ogg": ("OGG", "VORBIS", 16000, 1),
    "opus.ogg": ("OGG", "OPUS", 48000, 2),
    "layer3.mp3": ("MP3", "MPEG_LAYER_III", 44100, 2),
    "pcm16.aiff": ("AIFF", "PCM_16", 16000, 6),
    "pcm16.w64": ("W64", "PCM_16", 16000, 1),
    "alac.caf": ("CAF", "ALAC_16", 16000, 1),
}
SIZES = (0, 1, 2, 3, 255, 65_535, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1)


def harmed_sound(whole: bytes, others: Sequence[bytes], seed: int) -> bytes:
    """Bytes anywhere; a number of a header made absurd; or two files of any forms in one.

    Half of the OGG pages get a right checksum again: else the library looks at none that changed.
    """
    draw = random.Random(seed)
    kind = draw.choice(("bytes", "header", "header", "joined"))
    if kind == "bytes":
        data = bytearray(damaged(whole, seed))
    elif kind == "header":
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            width = draw.choice((1, 2, 3, 4, 8))
            start = draw.randrange(min(len(data), draw.choice((50, 50, 500))) - width)
            size = draw.choice(SIZES) & ((1 << 8 * width) - 1)
            data[start : start + width] = size.to_bytes(width, draw.choice(("little", "big")))
    else:
        other = draw.choice(others)
        cut = whole[: draw.randrange(len(whole))]
        parts = draw.choice(([whole, whole], [whole, other], [cut, other]))
        data = bytearray(b"".join(parts))
    if draw.random() < 0.5:
        _with_checksums(data)
    return bytes(data)


def _with_checksums(data: bytearray) -> None:
    """Of OGG pages, those that are whole."""
    start = data.find(b"OggS")
    while start >= 0 and start + 27 <= len(data):
        sizes = data[start + 27 : start + 27 + data[start + 26]]
        end = start + 27 + len(sizes) + sum(sizes)
        data[start + 22 : start + 26] = bytes(4)
        total = 0
        for byte in data[start:end]:
            total = (total << 8) & 0xFFFFFFFF ^ _CRC[total >> 24 ^ byte]
        data[start + 22 : start + 26] = total.to_bytes(4, "little")
        start = data.find(b"OggS", start + 27)


def _crc(byte: int) -> int:
    total = byte << 24
    for _ in range(8):
        total = (total << 1) ^ (0x04C11DB7 if total & 0x80000000 else 0)
    return total & 0xFFFFFFFF


_CRC = [_crc(byte) for byte in range(256)]


def odd(data: Any, seed: int) -> Any:
    """One value of a mapping replaced by one of another kind, or gone."""
    draw = random.Random(seed)
    data = json.loads(json.dumps(data))
    places = list(_places(data))
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(ODD)
    return data


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def harmed(path: Path, whole: bytes, seed: int) -> bytes:
    """Every third time an odd value, where the file holds such; otherwise bytes."""
    if seed % 3 == 0 and path.suffix in (".json", ".jsonl", ".yaml"):
        text = whole.decode()
        if path.suffix == ".yaml":
            return yaml.safe_dump(odd(yaml.safe_load(text), seed)).encode()
        if path.suffix == ".json":
            return json.dumps(odd(json.loads(text), seed)).encode()
        lines = text.splitlines()
        number = seed % len(lines)
        lines[number] = json.dumps(odd(json.loads(lines[number]), seed))
        return "\n".join(lines).encode()
    return damaged(whole, seed)
