"""Damage to files, drawn from a seed: bytes anywhere, and values of a JSON or YAML mapping."""

import json
import random
from collections.abc import Iterator
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
