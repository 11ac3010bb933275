"""What a recipe will build and cost, before anything is loaded, extracted or trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from speechfuse import build
from speechfuse.context.reading import PromptedFusion
from speechfuse.contracts import UpstreamPlan
from speechfuse.forms import Form, forms
from speechfuse.fusion import MergeFirst, fit_interfaces
from speechfuse.measure import best_device
from speechfuse.prompting import build_reader, read_at
from speechfuse.rates import check_given, duration, find_rates
from speechfuse.recipe import Recipe
from speechfuse.taskdata import is_prepared, load_tasks, prepared_folder
from speechfuse.tuning import trained_parameters
from speechfuse.types import Frames, LayerStack, StackSpec, Table, Utterance
from speechfuse.upstreams.attention import ATTENTION_SECONDS

ASSUMED = {
    "num_tokens": 29,
    "num_classes": 4,
    "slot_sizes": (6, 14, 4),
}  # sizes of heads; the data decides


def plan_recipe(
    recipe: Recipe, rates: Mapping[str, float] | None = None, *, measure: bool = False
) -> list[Table]:
    """Tables: upstreams, the trained part of each task, and what is stored.

    rates, measure: seconds of audio in a second of the upstreams, as `find_rates` takes them.

    Raises:
        SpeechFuseError: unknown parts or options, upstreams that cannot be fused.
    """
    built = {name: build.build_upstream(recipe, name) for name in recipe.upstreams}
    upstreams = {name: one.plan for name, one in built.items()}
    specs = [plan.spec for plan in upstreams.values()]
    with torch.device("meta"):  # shapes alone
        tuned = {n: trained_parameters(up) for n, up in build.build_tuned(recipe).items()}
    check_given(upstreams, rates or {})
    frozen = {name: one for name, one in built.items() if name not in tuned}
    given = {name: rate for name, rate in (rates or {}).items() if name not in tuned}
    found, how = find_rates(frozen, best_device(), given, measure=measure)
    return [
        _upstream_table(upstreams, tuned),
        *_trained_tables(recipe, specs),
        _store_table(recipe, forms(recipe, frozen, tuned), tuned, found, how),
    ]


def _upstream_table(upstreams: Mapping[str, UpstreamPlan], tuned: Mapping[str, int]) -> Table:
    """tuned: how many parameters are trained, by upstream."""
    rows = [
        [
            name,
            f"{p.spec.num_layers} x {p.spec.dim}",
            f"{p.spec.frame_rate:g} Hz",
            f"{p.parameters:,}",
            f"{p.macs_per_second / 1e9:.3f} G",
            f"{tuned[name]:,}" if name in tuned else "none, frozen",
            f"{(4 * p.parameters + 12 * tuned.get(name, 0)) / 1e6:.1f} MB",
        ]
        for name, p in upstreams.items()
    ]
    columns = [
        "upstream",
        "layers x width",
        "frames",
        "parameters",
        "multiply-adds / s of audio",
        "trained",
        "memory",
    ]
    return f"Upstreams (attention over clips of {ATTENTION_SECONDS:g} s)", columns, rows


def _trained_tables(recipe: Recipe, specs: list[StackSpec]) -> list[Table]:
    """Fusion and head of each task, and the context that tasks share if there is one."""
    rows = []
    # Not on the meta device: its first operation imports the compiler, more than drawing weights.
    fusion = build.build_fusion(recipe, specs, list(recipe.tasks))
    second = [_second(spec) for spec in specs]
    fit_interfaces(fusion, lambda: [second])
    macs = count_products(lambda: fusion(second, next(iter(recipe.tasks))))
    assumed = dict.fromkeys(recipe.tasks, ASSUMED)
    reader = build_reader(recipe, fusion.out_dim, fusion.frame_rate, assumed)
    for name, entry in recipe.tasks.items():
        head = build.build_head(entry, (reader or fusion).out_dim, ASSUMED)
        build.check_frames(recipe, name, fusion, head)
        read_at(recipe, name, head)
        trained = sum(p.numel() for part in (fusion, head) for p in part.parameters())
        read = [fusion.merge.spec] if isinstance(fusion, MergeFirst) else specs
        shapes = " + ".join(f"{spec.num_layers} x {spec.dim}" for spec in read)
        rows.append(
            [
                name,
                f"{shapes} -> {fusion.out_dim} at {fusion.frame_rate:g} Hz",
                f"{sum(p.numel() for p in fusion.parameters()):,}",
                f"{macs / 1e9:.4f} G",
                f"{sum(p.numel() for p in head.parameters()):,}",
                f"{16 * trained / 1e6:.1f} MB",
            ]
        )
    columns = ["task", "fusion", "parameters", "multiply-adds / s", "head's parameters", "memory"]
    shared = "" if recipe.fusion.per_task else ", one fusion for all tasks"
    known = f"{ASSUMED['num_tokens']} tokens or {ASSUMED['num_classes']} classes assumed"
    title = f"Trained{shared} ({known}; memory: weights, gradients, Adam)"
    tables: list[Table] = [(title, columns, rows)]
    if reader is not None:
        tables.append(_context_table(recipe, reader, fusion(second, next(iter(recipe.tasks)))))
    return tables


def _context_table(recipe: Recipe, reader: PromptedFusion, second: Frames) -> Table:
    """second: what is fused of one second of audio."""
    spec, task = reader.context.spec, next(iter(recipe.tasks))
    macs = count_products(lambda: reader(second, task, ["prompt"]))
    parameters = sum(p.numel() for p in reader.parameters())
    row = [
        f"{spec.num_layers} x {spec.dim}",
        f"{spec.frame_rate:g} Hz",
        f"{parameters:,}",
        f"{sum(p.numel() for p in reader.interface.parameters()):,}",
        f"{macs / 1e9:.4f} G",
        f"{16 * parameters / 1e6:.1f} MB",
    ]
    columns = ["layers x width", "positions", "parameters", "of them fusion's"]
    columns += ["multiply-adds / s", "memory"]
    return "Prompted transformer, shared by all tasks, without text", columns, [row]


def _store_table(
    recipe: Recipe,
    kept: Sequence[Form],
    tuned: Collection[str],
    rates: Mapping[str, float],
    how: str,
) -> Table:
    """Each upstream's layers; beside them what may be stored in their place, to the same end.

    rates: seconds of audio in a second, of those that are stored. how: where they are from.
    """
    # In noise a corpus has layers of its own.
    read = dict.fromkeys(
        (corpus, entry.noise_snr)
        for entry in recipe.tasks.values()
        for corpus in (entry.corpus, *entry.extra_training)
    )
    counts = {corpus: _counted(corpus) for corpus, _ in read}
    counted = [one for corpus, _ in read if (one := counts[corpus])]
    unknown = ", ".join(corpus for corpus, one in counts.items() if one is None)
    copies = _copies(recipe)
    hours, utterances = (sum(one[key] for one in counted) for key in ("hours", "utterances"))
    hours += sum(u.duration or 0.0 for u in copies) / 3600
    utterances += len(copies)
    rows, dtype = [], recipe.store.dtype
    for form in kept:
        hour, frame = form.bytes_of(3600, 0, dtype), form.frame_bytes(dtype)
        each = f"{frame / 1e3:.2f} kB an utterance" if form.mean else f"{hour / 1e9:.2f} GB"
        total = form.bytes_of(3600 * hours, utterances, dtype)
        # All that are stored as one are run.
        run = [rates[form.name]] if form.name in rates else [*rates.values()]
        takes = sum(3600 / rate for rate in run)
        size = f"{total / 1e9:.2f} GB" if counted else "corpus not prepared"
        about = duration(hours * takes) if counted else ""
        rows.append([form.name, each, size, duration(takes), about])
    rows += [[name, "nothing, it is trained", "nothing", "", ""] for name in tuned]
    store = recipe.store
    title = f"Stored layers ({store.dtype}, reduce: {store.reduce}, budget {store.budget_gb:g} GB"
    title += f", with {len(copies):,} altered copies" if copies else ""
    title += f", without {unknown}, which is not prepared" if counted and unknown else ""
    title += f"); times {how}" if how else ")"
    columns = ["upstream", "for an hour of audio", "for these corpora"]
    columns += ["an hour takes about", "these take about"]
    return title, columns, rows


def count_products(call: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products and convolutions within a call."""
    products = _Products()  # type: ignore[no-untyped-call]
    with products, torch.no_grad():
        call()
    return products.total


class _Products(TorchDispatchMode):
    """Counts multiply-adds of matrix products and convolutions.

    Torch's own FlopCounterMode imports the compiler first, which takes a second.
    """

    total = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # what a mode is asked before it imports the compiler
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is torch.ops.aten.addmm_:  # its formula is that of addmm
            packet = torch.ops.aten.addmm
        if str(packet) == "mkldnn._linear_pointwise":  # rows (N, D) and a weight
            self.total += args[0].numel() * len(args[1])
        if count := flop_registry.get(packet):
            self.total += count(*args, **(kwargs or {}), out_val=out) / 2
        return out


def _second(spec: StackSpec) -> LayerStack:
    """A stack of one second of silence, to count products on."""
    frames = round(spec.frame_rate)
    layer = torch.zeros(1, frames, spec.dim)
    return LayerStack((layer,) * spec.num_layers, torch.tensor([frames]), spec.frame_rate)


def _copies(recipe: Recipe) -> list[Utterance]:
    """Altered training utterances of the corpora that are prepared, each once in each noise."""
    asked = {n: e for n, e in recipe.tasks.items() if e.augment and e.augment.copies}
    ready = {
        name: entry
        for name, entry in asked.items()
        if all(is_prepared(prepared_folder(n)) for n in (entry.corpus, *entry.extra_training))
    }
    if not ready:
        return []
    data = load_tasks(recipe.model_copy(update={"tasks": ready}))
    found = {
        (u.audio, u.start, u.alteration, one.noise_snr): u
        for one in data.values()
        for u in one.splits["train"]
        if u.alteration
    }
    return [*found.values()]


def _counted(corpus: str) -> dict[str, Any] | None:
    """What a prepared corpus has, None if it is not prepared yet."""
    folder = prepared_folder(corpus)
    if is_prepared(folder):
        return dict(json.loads((folder / "corpus.json").read_text()))
    return None
