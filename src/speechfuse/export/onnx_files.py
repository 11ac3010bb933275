"""Graphs as ONNX files that share one file of weights, which is safetensors.

ONNX lets a tensor lie in another file, at an offset; a safetensors file is tensors one after the
other behind a header. So equal weights of several graphs are kept once, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = "weights.safetensors"
LARGE = 1024  # bytes from which a tensor lies in the file of weights


def cleaned(model: Any) -> Any:
    """The model without where in whose files each node comes from, and weights as products read
    them: a transposed one is transposed here, once.
    """
    from onnx import numpy_helper

    graph = model.graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    for node in [*graph.node]:
        del node.metadata_props[:]
        if node.op_type == "Transpose" and node.input[0] in kept:
            values = numpy_helper.to_array(kept[node.input[0]])
            axes = next((tuple(one.ints) for one in node.attribute if one.name == "perm"), None)
            turned = numpy_helper.from_array(values.transpose(axes).copy(), node.output[0])
            graph.initializer.append(turned)
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for tensor in [*graph.initializer]:
        if tensor.name not in read:
            graph.initializer.remove(tensor)
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    return model


def save(models: Mapping[str, Any], folder: Path) -> None:
    """Write models by file name, their large tensors in one file beside them, each once."""
    from onnx import numpy_helper
    from safetensors.numpy import save_file

    kept: dict[str, Any] = {}
    names: dict[str, str] = {}  # by content
    placed = []
    for model in models.values():
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.nbytes < LARGE:
                continue
            mark = f"{values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"
            if mark not in names:
                name = tensor.name
                while name in kept:
                    name += "_"
                names[mark], kept[name] = name, values
            placed.append((tensor, names[mark]))
    save_file(kept, folder / WEIGHTS, {"format": "np"})
    where = offsets(folder / WEIGHTS)
    for tensor, name in placed:
        begin, size = where[name]
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            tensor.ClearField(field)
        tensor.data_location = 1  # external
        for key, value in (("location", WEIGHTS), ("offset", begin), ("length", size)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString())
        shutil.copymode(folder / name, folder / WEIGHTS)


def offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file begins, and its bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            found[name] = 8 + size + begin, end - begin
    return found
