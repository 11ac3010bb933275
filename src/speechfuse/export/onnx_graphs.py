"""From modules to models of ONNX, in float32 or with 8-bit weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechfuse.errors import ExportError
from speechfuse.export.lstm import OPERATOR
from speechfuse.export.onnx_files import cleaned

OPSET = 20
QUANTISED = ("MatMul", "Gemm", "LSTM")
Dims = Sequence[Mapping[int, Any] | Sequence[Mapping[int, Any]]]  # of *arguments together


def check_libraries() -> None:
    """Raises ExportError if those of the extra are not here."""
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    if lacking:
        raise ExportError(
            f"export to onnx needs {', '.join(lacking)}; pip install 'speechfuse[export]'"
        )


def traced(module: nn.Module, inputs: tuple[Tensor, ...], dims: Dims) -> Any:
    """The program of torch.export that a module is, with these axes of its inputs free.

    Raises:
        ExportError: a part of it depends on a number that a graph does not know.
    """
    shapes = _free(dims)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(*inputs)  # what is kept of a first call is then kept of real tensors
            return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds
        said = [line for line in str(error).splitlines() if line.strip()][:2]
        raise ExportError(
            f"no graph can be made of this run ({type(error).__name__}: {' '.join(said)[:400]}); a "
            "part of it does other things for other sizes, see docs/export.md"
        ) from error


def _free(dims: Any) -> Any:
    if isinstance(dims, Mapping):
        return dict.fromkeys(dims, torch.export.Dim.DYNAMIC)
    return tuple(map(_free, dims))


def to_onnx(program: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The same as a model of ONNX, in memory."""
    from onnxscript import opset20

    op: Any = opset20

    def lstm(hidden: Any, w: Any, r: Any, b: Any, dim: int) -> Any:
        made, _, _ = op.LSTM(op.Transpose(hidden, perm=[1, 0, 2]), w, r, b, hidden_size=dim)
        return op.Transpose(op.Squeeze(made, [1]), perm=[1, 0, 2])

    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[*inputs],
            output_names=[*outputs],
            opset_version=OPSET,
            custom_translation_table={OPERATOR: lstm},
            verbose=False,
        )
    assert made is not None
    return cleaned(made.model_proto)


def quantised(folder: Path, name: str, scratch: Path) -> Any:
    """A saved model with its products' weights in 8 bits, and what they read when it is run.

    Weights by column; convolutions stay as they are.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = scratch / name
    with _quiet():
        quantize_dynamic(
            folder / name,
            made,
            op_types_to_quantize=[*QUANTISED],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    return onnx.load(str(made))


@contextmanager
def _quiet() -> Any:
    """Without what the libraries say of their own doing."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
