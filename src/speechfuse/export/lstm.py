"""One direction of an LSTM as an operator of a graph; a package for torch carries this file.

torch.export would write every step of it down, for one number of frames. Needs torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, library, nn


@library.custom_op("speechfuse::lstm", mutates_args=())
def lstm(hidden: Tensor, w: Tensor, r: Tensor, b: Tensor, dim: int) -> Tensor:
    """(B, T, D) -> (B, T, dim), from zero states.

    w, r, b: as ONNX has them, (1, 4 dim, D), (1, 4 dim, dim), (1, 8 dim); gates i, o, f, c.
    """

    def gates(rows: Tensor) -> Tensor:
        i, o, f, c = rows.chunk(4)
        return torch.cat([i, f, c, o])

    zeros = hidden.new_zeros(1, len(hidden), dim)
    weights = [gates(w[0]), gates(r[0]), *map(gates, b[0].chunk(2))]
    made: Tensor = torch.lstm(hidden, (zeros, zeros), weights, True, 1, 0.0, False, False, True)[0]
    return made


@lstm.register_fake
def _(hidden: Tensor, w: Tensor, r: Tensor, b: Tensor, dim: int) -> Tensor:
    return hidden.new_empty(*hidden.shape[:2], dim)


OPERATOR = torch.ops.speechfuse.lstm.default


class ExportedLSTM(nn.Module):
    """An `nn.LSTM` of one layer and direction, batch first, in evaluation mode."""

    def __init__(self, made: nn.LSTM) -> None:
        super().__init__()
        self.dim, given = made.hidden_size, made.state_dict()

        def gates(rows: Tensor) -> Tensor:
            i, f, c, o = rows.detach().chunk(4)
            return torch.cat([i, o, f, c])[None]

        self.register_buffer("w", gates(given["weight_ih_l0"]))
        self.register_buffer("r", gates(given["weight_hh_l0"]))
        biases = gates(given["bias_ih_l0"]), gates(given["bias_hh_l0"])
        self.register_buffer("b", torch.cat(biases, dim=1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return lstm(hidden, self.w, self.r, self.b, self.dim), None


def replace_lstms(module: nn.Module) -> None:
    """Put the operator where there is an LSTM that it can stand for."""
    for name, child in module.named_children():
        if isinstance(child, nn.LSTM) and _is_plain(child):
            setattr(module, name, ExportedLSTM(child))
        else:
            replace_lstms(child)


def _is_plain(lstm: nn.LSTM) -> bool:
    one = lstm.num_layers == 1 and not lstm.bidirectional and not lstm.proj_size
    return one and lstm.batch_first and lstm.bias
