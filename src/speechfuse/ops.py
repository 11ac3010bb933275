"""Small tensor operations shared by several parts. Pure functions, no parameters."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechfuse.errors import RecipeError, did_you_mean

NORMALISATIONS = ("none", "layer_norm", "unit_rms")


def seed_for(seed: int, *names: str) -> int:
    """A seed for one part of a run, whatever other parts there are: 31 bits.

    >>> seed_for(7, "head", "asr") == seed_for(7, "head", "emotion")
    False
    """
    digest = hashlib.sha256("|".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def file_hash(paths: Sequence[Path]) -> str:
    """SHA-256 of files one after the other, read once while they do not change."""
    return _hashed(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths))


@lru_cache
def _hashed(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Every run of a sweep asks several times."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def seeded(seed: int, *names: str) -> Iterator[None]:
    """What is drawn within is drawn from the seed of one part, and nothing else is changed."""
    with kept_random():
        torch.manual_seed(seed_for(seed, *names))
        yield


@contextmanager
def kept_random() -> Iterator[None]:
    """What is drawn within changes nothing that is drawn afterwards, on GPUs in use either."""
    gpus = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    with torch.random.fork_rng(devices=range(gpus)):
        yield


def at_rest(model: nn.Module) -> None:
    """Evaluation mode in which gradients can be taken: cuDNN has those of an LSTM in training only.

    The LSTMs here drop nothing, so both modes give the same.
    """
    for module in model.eval().modules():
        if isinstance(module, nn.RNNBase):
            assert not module.dropout, "an LSTM with dropout of its own"
            module.train()


def exporting() -> bool:
    """Whether a graph is being made of what is called: there are sizes then, and no numbers."""
    return torch.compiler.is_exporting()


def longest(lengths: Tensor, bound: int) -> int:
    """The largest of lengths (B,); in a graph what they cannot exceed, the size of an axis."""
    return bound if exporting() else int(lengths.max())


def all_valid(mask: Tensor) -> bool:
    """Whether nothing is padded; in a graph something may always be."""
    return not exporting() and bool(mask.all())


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position is valid, shape (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def zero_padding(hidden: Tensor, lengths: Tensor) -> Tensor:
    """The same frames with everything beyond each utterance's length set to zero: (B, T, D)."""
    return hidden * length_mask(lengths, hidden.shape[1])[..., None].to(hidden.dtype)


def masked_mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid frames: (B, T, D), (B,) -> (B, D)."""
    weights = length_mask(lengths, hidden.shape[1]).to(hidden.dtype)
    total = torch.einsum("btd,bt->bd", hidden.masked_fill(weights[..., None] == 0, 0), weights)
    return total / lengths.clamp_min(1)[:, None].to(hidden.dtype)


def masked_std(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Standard deviation over the valid frames, with a small floor: (B, T, D), (B,) -> (B, D)."""
    centred = hidden - masked_mean(hidden, lengths)[:, None]
    return (masked_mean(centred.square(), lengths) + 1e-5).sqrt()


def normalise(hidden: Tensor, kind: str) -> Tensor:
    """Put hidden states of different models on one scale, frame by frame, nothing learned.

    kind: none; layer_norm, zero mean and unit variance over features; unit_rms, unit root mean
    square over features.
    """
    if kind == "none":
        return hidden
    if kind == "layer_norm":
        return F.layer_norm(hidden, hidden.shape[-1:])
    if kind == "unit_rms":
        return F.rms_norm(hidden, hidden.shape[-1:])
    raise RecipeError(f"unknown normalisation '{kind}'; {did_you_mean(kind, NORMALISATIONS)}")


def pad_frames(frames: list[Tensor]) -> Tensor:
    """Utterances (T_b, D) side by side, zeros on the right: (B, T, D)."""
    return pad_sequence(frames, batch_first=True)


def joined_frames(hidden: Tensor, join: int) -> Tensor:
    """Neighbours side by side, zeros behind the last: (B, T, D) -> (B, T / join, join * D)."""
    batch, size, dim = hidden.shape
    if exporting():  # nothing to be proved of how many there are
        starts = torch.arange((size + join - 1) // join)[:, None] * join
        return F.pad(hidden, (0, 0, 0, join - 1))[:, starts + torch.arange(join)].flatten(2)
    return F.pad(hidden, (0, 0, 0, -size % join)).reshape(batch, -1, join * dim)


def mix(weights: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Sum over l of weights[l] * layers[l]: one pass over each layer and no stack.

    weights: (L,), or whatever lets weights[l] broadcast over a layer (B, T, D): (L, D) weighs
    features, (L, B, T, 1) frames. In mixed precision too the sum is in the layers' own precision:
    to round them would take longer than to read them.
    """
    if exporting():  # memory and gradients are no matter of a graph
        total: Any = sum(layer * weight for weight, layer in zip(weights, layers, strict=True))
        return torch.as_tensor(total)
    mixed: Tensor = _Mix.apply(weights.to(layers[0].dtype), *layers)  # type: ignore[no-untyped-call]
    return mixed


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *layers)
        fast = weights.itemsize > 2 or weights.is_cuda  # bfloat16 is slower so on a CPU, 1.8 times
        rows = as_rows(layers) if weights.dim() == 1 and fast else None
        if rows is not None:
            total = torch.empty_like(layers[0])
            torch.mm(weights[None], rows, out=total.view(1, -1))  # autocast leaves it as it is
            return total
        total = layers[0] * weights[0]
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            total.addcmul_(layer, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *layers = ctx.saved_tensors
        by_weight = None
        rows = as_rows(layers) if weights.dim() == 1 else None
        if ctx.needs_input_grad[0] and rows is not None:
            column = grad.new_empty(len(rows), 1)
            by_weight = torch.mm(rows, grad.flatten()[:, None], out=column)[:, 0]
        elif ctx.needs_input_grad[0]:
            by_weight = torch.stack([_summed(grad, layer, weights.shape[1:]) for layer in layers])
        by_layer = [
            grad * weight if needed else None
            for weight, needed in zip(weights, ctx.needs_input_grad[1:], strict=True)
        ]
        return by_weight, *by_layer


def _summed(grad: Tensor, layer: Tensor, shape: torch.Size) -> Tensor:
    """grad * layer, summed to a shape that broadcasts over it; a dot product makes no copy."""
    if not shape and grad.itemsize > 2:  # of bfloat16, a dot product takes 20 times as long
        return torch.dot(grad.flatten(), layer.flatten())
    return (grad * layer).sum_to_size(shape)


def as_rows(layers: Sequence[Tensor]) -> Tensor | None:
    """L layers as a matrix (L, B * T * D) without a copy, None if they do not lie so in memory.

    Those of a store do; one product then reads each layer once, where a sum of layers reads and
    writes what it has so far as well.
    """
    first = layers[0]
    if len(layers) == 1 or not all(layer.is_contiguous() for layer in layers):
        return None
    start, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    step = layers[1].storage_offset() - start
    if step < first.numel() or any(
        layer.storage_offset() != start + i * step or layer.untyped_storage().data_ptr() != memory
        for i, layer in enumerate(layers)
    ):
        return None
    return first.as_strided((len(layers), first.numel()), (step, 1))


def product_dtype(layer: Tensor) -> torch.dtype:
    """The precision in which a layer is multiplied: its own, or that of autocast."""
    device = layer.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.dtype


def add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, in the precision of `total`."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def fitting_heads(dim: int, most: int) -> int:
    """The largest number of attention heads, up to `most`, that divides a width; warns if fewer.

    >>> fitting_heads(768, 8), fitting_heads(510, 8), fitting_heads(7, 4)
    (8, 6, 1)
    """
    fitting = max(heads for heads in range(1, most + 1) if dim % heads == 0)
    if fitting < most:
        logging.getLogger(__name__).warning(
            "attention heads reduced from %d to %d, which divides a width of %d", most, fitting, dim
        )
    return fitting


def attend(
    attention: nn.MultiheadAttention, queries: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """What queries (Q, D) read from the tokens (B, T, N, D) of each frame, as `attention` would.

    The queries are the same in every frame, so keys and values of the tokens need not exist:

        query . (K token)          = (K' query) . token        D products for a head, not D * D
        sum of weight * (V token)  = V (sum of weight * token)        once a frame, not a token

    A key bias is left out, it adds the same to every score. The value bias is added whole, where
    dropout of `attention` would drop its share. Returns (B, T, Q, D) and the weights
    of each query and head, (B, T, N, Q * H), which sum to one over N.
    """
    heads = (attention.num_heads, -1)
    to_query, to_key, to_value = attention.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
    asked = F.linear(queries, to_query, query_bias).unflatten(-1, heads)  # (Q, H, D / H)
    keys = torch.einsum("qhi,hid->dqh", asked, to_key.unflatten(0, heads)).flatten(1)
    weights = (tokens @ (keys / asked.shape[-1] ** 0.5)).softmax(2)
    kept = F.dropout(weights, attention.dropout, attention.training)
    mixed = (kept.transpose(2, 3) @ tokens).unflatten(2, (len(queries), -1))  # (B, T, Q, H, D)
    values = torch.einsum("btqhd,hid->btqhi", mixed, to_value.unflatten(0, heads))
    return attention.out_proj(values.flatten(3) + value_bias), weights


def moved(item: Any, device: torch.device) -> Any:
    """Tensors on `device`, inside tuples, lists and dataclasses too; anything else as it is.

    Only to a GPU without waiting: on the way back they could be read before they are there.
    """
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=device.type != "cpu")
    if isinstance(item, tuple | list):
        return type(item)(moved(one, device) for one in item)
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{f.name: moved(getattr(item, f.name), device) for f in fields(item)})
    return item
