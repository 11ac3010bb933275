"""Which weights of an upstream are trained, and that only they are saved.

top_2         all                            top_2 with lora
block   *     block   *                      block   + adapters *
block   *     block   *                      block   + adapters *
block         block   *                      block
the rest      the rest *, convolutions too   the rest              * trained, all else rests
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from speechfuse.contracts import Upstream
from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.ops import kept_random, seed_for
from speechfuse.recipe import LoraRecipe, TrainingRecipe


def tune(upstreams: Mapping[str, Upstream], training: TrainingRecipe, seed: int) -> None:
    """Let gradients reach what the recipe asks of each of these upstreams, and nothing else.

    seed: of the adapters' random start; what they add is zero at first.

    Raises:
        RecipeError: more blocks than there are, adapters for Linears that are not there, no peft.
    """
    asked = {name: _asked(name, up, training.blocks_of(name)) for name, up in upstreams.items()}
    if training.lora:
        _check_targets(asked, training.lora)
    for name, upstream in upstreams.items():
        if training.lora:
            with kept_random():
                torch.manual_seed(seed_for(seed, "lora", name))
                _add_adapters(upstream, asked[name], training.lora)
        elif training.blocks_of(name) == "all":
            for _, weight in upstream.trainable():
                weight.requires_grad_(True)
        else:
            for block in asked[name]:
                block.requires_grad_(True)
        upstream.tuned = True
        _save_trained_only(upstream)


def trained_parameters(upstream: Upstream) -> int:
    """How many parameters of it are trained."""
    return sum(p.numel() for p in upstream.parameters() if p.requires_grad) if upstream.tuned else 0


def _asked(name: str, upstream: Upstream, which: str) -> Sequence[nn.Module]:
    """The blocks that are trained; the upstream is loaded, all of it at rest."""
    upstream.load()
    upstream.requires_grad_(False)
    blocks = upstream.blocks()
    count = len(blocks) if which == "all" else int(which.removeprefix("top_"))
    if count > len(blocks):
        raise RecipeError(
            f"training.train_upstream: '{which}' of upstream '{name}', which has {len(blocks)} "
            f"blocks; use top_{len(blocks)} or fewer, or all"
        )
    return blocks[len(blocks) - count :]


def _linears(blocks: Sequence[nn.Module]) -> list[tuple[str, nn.Linear]]:
    """The Linears of some blocks, each under its own name alone."""
    return [
        (name.rpartition(".")[2], module)
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]


def _check_targets(asked: Mapping[str, Sequence[nn.Module]], lora: LoraRecipe) -> None:
    """Each target has to be in an upstream, and each upstream needs one of them."""
    known = {name: {linear for linear, _ in _linears(blocks)} for name, blocks in asked.items()}
    everywhere = set().union(*known.values())
    for target in lora.targets:
        if target not in everywhere:
            raise RecipeError(
                f"training.lora.targets: no Linear '{target}' in the blocks of "
                f"{' or '.join(known)}; {did_you_mean(target, everywhere)}"
            )
    for name, linears in known.items():
        if not linears & set(lora.targets):
            raise RecipeError(
                f"training.lora.targets: none of {', '.join(lora.targets)} is in the blocks of "
                f"upstream '{name}'; add some of its Linears: {', '.join(sorted(linears))}"
            )


def _add_adapters(upstream: Upstream, blocks: Sequence[nn.Module], lora: LoraRecipe) -> None:
    """Adapters around the targets in these blocks; peft sets what needs gradients."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError(
            "training.lora needs peft, which is not installed; "
            "install it with: pip install 'speechfuse[lora]'"
        ) from error
    wanted = {id(linear) for name, linear in _linears(blocks) if name in lora.targets}
    names = [name for name, module in upstream.named_modules() if id(module) in wanted]
    options: Any = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": names}
    inject_adapter_in_model(LoraConfig(**options, lora_dropout=0.0), upstream)
    upstream.eval()


def _save_trained_only(upstream: Upstream) -> None:
    """What rests is left out of state_dict(), and is not missed when one is loaded."""
    trained = {name for name, weight in upstream.named_parameters() if weight.requires_grad}
    resting = [name for name in upstream.state_dict() if name not in trained]

    def leave_out(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for name in resting:
            del state[prefix + name]

    def keep_own(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in resting:
            state[prefix + name] = attrgetter(name)(module)

    hooks: Any = upstream  # torch does not type them
    hooks.register_state_dict_post_hook(leave_out)
    hooks.register_load_state_dict_pre_hook(keep_own)
