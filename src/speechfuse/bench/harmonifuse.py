"""HarmoniFuse's transformer against itself without a cache, and without fusion, in one run.

* Writing: the fused model with its cache; the same without one; and the same blocks, size and
  vocabulary as transformers' own Llama, which fuses nothing. The end token is made unlikely, so
  that all write as many tokens.
* Training: a step with `prompt_adaptive` fusion and one that reads the last layer alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.context.reading import PromptedFusion
from speechfuse.decoding import driven, generate
from speechfuse.heads.text import END, Text
from speechfuse.interfaces.prompt_adaptive import PromptAdaptiveFusion
from speechfuse.interfaces.single_layer import SingleLayer
from speechfuse.measure import (
    Call,
    Device,
    devices,
    median_ratio,
    peak_bytes,
    seconds_in_turns,
    setting,
)
from speechfuse.types import Frames, Generated, Table, Tokens

TASK = "bench"
WIDTH, FRAME_RATE = 768, 50.0  # of WavLM-base
VOCABULARY = 1000
BATCHES = (1, 4)  # that write
TRAINED = 8  # utterances in a step
PROFILED = 3  # steps
SLOW = 5  # one turn without a cache for so many with one
BACKWARD = "autograd::engine::evaluate_function"  # as the profiler names gradients
Preset = Literal["paper", "small", "tiny"]


@dataclass(frozen=True)
class Sizes:
    """What is measured: speech in seconds, tokens after it."""

    preset: Preset = "small"
    seconds: float = 5.0
    tokens: int = 100


@dataclass(frozen=True)
class Writing:
    """Seconds are medians of one call that writes all tokens."""

    device: str
    batch: int
    fused: float
    bare: float
    uncached: float
    cost_of_fusion: float  # fused / bare, within a turn
    gain_of_cache: float  # uncached / fused, of medians: turns without a cache are few


@dataclass(frozen=True)
class Training:
    """Seconds of a step are medians; shares are of a step's time."""

    device: str
    fused: float
    last_layer: float
    share: float  # fusion and what normalises the layers for it, by difference
    profiled: float | None  # fusion alone, forward and backward; on a CPU
    memory: int  # bytes beside parameters and the optimiser's moments
    last_layer_memory: int


def harmonifuse_tables(sizes: Sizes, repeats: int, device: Device = "all") -> Iterator[Table]:
    """What `bench_writing` and `bench_training` measure, for reading."""
    measured = (
        f"preset {sizes.preset}, {sizes.seconds:g} s of speech, {sizes.tokens} tokens, "
        f"{setting(repeats)}"
    )
    rows = []
    for one in bench_writing(sizes, repeats, device=device):
        each = [f"{one.batch * sizes.tokens / s:.0f}" for s in (one.fused, one.bare, one.uncached)]
        factor = one.fused / (one.batch * sizes.seconds)
        ratios = [f"{one.cost_of_fusion:.2f}", f"{one.gain_of_cache:.1f}"]
        rows.append([one.device, str(one.batch), *each, f"{factor:.3f}", *ratios])
    columns = ["", "batch", "tokens / s", "bare tokens / s", "uncached tokens / s"]
    columns += ["real-time factor", "time / bare", "uncached time / time"]
    yield f"Writing: {measured}", columns, rows
    rows = []
    for step in bench_training(sizes, repeats, device):
        times = [f"{1000 * s:.0f}" for s in (step.fused, step.last_layer)]
        shares = [f"{100 * step.share:.1f} %"]
        shares.append("" if step.profiled is None else f"{100 * step.profiled:.1f} %")
        memory = [f"{b / 1e6:.0f}" for b in (step.memory, step.last_layer_memory)]
        rows.append([step.device, *times, *shares, *memory])
    columns = ["", "ms", "last layer ms", "fusion by difference", "by profiler", "MB"]
    yield f"Training, {TRAINED} utterances: {measured}", [*columns, "last layer MB"], rows


def bench_writing(
    sizes: Sizes, repeats: int, batches: Sequence[int] = BATCHES, device: Device = "all"
) -> Iterator[Writing]:
    """Every number of utterances on the devices asked for."""
    for name in devices(device):
        for batch in batches:
            yield _writing(sizes, repeats, batch, name)


def bench_training(sizes: Sizes, repeats: int, device: Device = "all") -> Iterator[Training]:
    """A step on the devices asked for."""
    for name in devices(device):
        fused, last = (_Step(sizes, kind, name) for kind in (PromptAdaptiveFusion, SingleLayer))
        taken = seconds_in_turns({"fused": fused, "last": last}, repeats)
        yield Training(
            device=name,
            fused=median(taken["fused"]),
            last_layer=median(taken["last"]),
            share=1 - median_ratio(taken["last"], taken["fused"]),
            profiled=median(fused.profiled() for _ in range(PROFILED)) if name == "cpu" else None,
            memory=peak_bytes(fused),
            last_layer_memory=peak_bytes(last),
        )


def _writing(sizes: Sizes, repeats: int, batch: int, device: str) -> Writing:
    reader, head = _model(sizes, PromptAdaptiveFusion, device)
    frames, bare = _frames(sizes, batch, device), bare_decoder(reader, head)
    assert isinstance(reader.context, PromptedTransformer)
    heard = reader.context.packed(frames, TASK).valid

    def fused(use_cache: bool = True) -> list[Generated]:
        return generate(reader, head, frames, TASK, use_cache=use_cache)

    calls: dict[str, Call] = {"fused": fused, "bare": lambda: driven(bare, heard, head)}
    often = seconds_in_turns(calls, repeats)
    calls = {"fused": fused, "uncached": lambda: fused(use_cache=False)}
    seldom = seconds_in_turns(calls, max(1, repeats // SLOW), warm_up=0)  # it is warm
    slow = median(seldom["uncached"])
    return Writing(
        device=device,
        batch=batch,
        fused=median(often["fused"]),
        bare=median(often["bare"]),
        uncached=slow,
        cost_of_fusion=median_ratio(often["fused"], often["bare"]),
        gain_of_cache=slow / median(often["fused"] + seldom["fused"]),
    )


def _model(
    sizes: Sizes, kind: type[PromptAdaptiveFusion] | type[SingleLayer], device: str
) -> tuple[PromptedFusion, Text]:
    """One that writes `sizes.tokens` tokens and no end."""
    torch.manual_seed(0)
    context = PromptedTransformer(
        WIDTH,
        FRAME_RATE,
        tasks=[TASK],
        text_sizes={TASK: VOCABULARY},
        prompts={},
        preset=sizes.preset,
    )
    interface = kind(context.spec, tasks=[TASK])
    normalize = "layer_norm" if kind is PromptAdaptiveFusion else "none"
    head = Text(context.spec.dim, num_tokens=VOCABULARY, max_tokens=sizes.tokens)
    with torch.no_grad():
        head.linear.bias[END] = -1e4
    reader = PromptedFusion(context, interface, normalize=normalize)
    return reader.to(device).eval(), head.to(device).eval()


def bare_decoder(reader: PromptedFusion, head: Text) -> Any:
    """transformers' own Llama of the same blocks: its norm reads the last layer.

    It has the very weights: of copies, one may lie in slower memory.
    """
    from transformers import LlamaForCausalLM

    context: Any = reader.context
    config = deepcopy(context.blocks.config)
    config.vocab_size = head.num_tokens
    bare: Any = LlamaForCausalLM(config).eval()
    bare.model.layers.load_state_dict(context.blocks.layers.state_dict(), assign=True)
    bare.model.norm, bare.lm_head = context.norm, head.linear
    bare.model.embed_tokens = context.texts[TASK]
    return bare.to(head.linear.weight.device)


def _frames(sizes: Sizes, batch: int, device: str) -> Frames:
    size = round(sizes.seconds * FRAME_RATE)
    hidden = torch.randn(batch, size, WIDTH, device=device)
    return Frames(hidden, torch.full((batch,), size, device=device), FRAME_RATE)


class _Step:
    """Forward, backward and optimiser of one model, again at each call."""

    def __init__(
        self, sizes: Sizes, kind: type[PromptAdaptiveFusion] | type[SingleLayer], device: str
    ) -> None:
        self.reader, self.head = _model(sizes, kind, device)
        self.reader.train()
        self.optimizer = torch.optim.AdamW([*self.reader.parameters(), *self.head.parameters()])
        self.frames = _frames(sizes, TRAINED, device)
        ids = torch.randint(1, VOCABULARY, (TRAINED, sizes.tokens), device=device)
        self.text = Tokens(ids, torch.full((TRAINED,), sizes.tokens, device=device))

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        (read,) = self.reader(self.frames, TASK, ["text"], text=self.text)
        found = self.head.loss(read, self.text)
        loss = found.total / found.count
        loss.backward()
        self.optimizer.step()
        return loss

    def profiled(self) -> float:
        """Share of the interface: its own operations, and the gradients of just these."""
        mark = record_function("fusion")

        def begin(*_: object) -> None:
            mark.__enter__()

        def end(*_: object) -> None:
            mark.__exit__(None, None, None)

        interface = self.reader.interface
        hooks = [interface.register_forward_pre_hook(begin), interface.register_forward_hook(end)]
        with profile(activities=[ProfilerActivity.CPU]) as found, record_function("step"):
            self()
        for hook in hooks:
            hook.remove()
        events: list[Any] = list(found.events() or [])
        (step,) = (e for e in events if e.name == "step")
        (fusion,) = (e for e in events if e.name == "fusion")
        span = fusion.time_range
        own = {
            e.sequence_nr
            for e in events
            if span.start <= e.time_range.start and e.time_range.end <= span.end
        } - {-1}
        back = [e for e in events if e.name.startswith(BACKWARD) and e.sequence_nr in own]
        taken = fusion.cpu_time_total + sum(e.cpu_time_total for e in back)
        return float(taken / step.cpu_time_total)
