"""The command for speed: bench."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from speechfuse.cli.shared import SPEED, app, run_there
from speechfuse.cli.terminal import print_table
from speechfuse.errors import SpeechFuseError


class _Benchmarks(TyperCommand):
    """Options below the benchmarks that have them; another one's is refused."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[Any]] = {"Arguments": [], "Options of every benchmark": []}
        for one in self.get_params(ctx):
            title = "Arguments" if one.param_type_name == "argument" else [*sections][1]
            if of := _benchmarks_of(one):
                title = f"Options of {' and '.join(filter(None, (', '.join(of[:-1]), of[-1])))}"
            sections.setdefault(title, []).append(one.get_help_record(ctx))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        what = ctx.params["what"]
        for one in self.get_params(ctx):
            of = _benchmarks_of(one) or [what]
            if what not in of and ctx.get_parameter_source(one.name).name == "COMMANDLINE":
                raise typer.BadParameter(
                    f"bench {what} has no such option, it is one of bench {' or '.join(of)}; "
                    "see speechfuse bench --help",
                    param_hint=f"'{one.opts[0]}'",
                )
        return left


def _benchmarks_of(option: Any) -> list[str]:
    """Which ones have it; none: all, or it is no option."""
    panel = getattr(option, "rich_help_panel", None)
    return panel.split(", ") if panel else []


@app.command(rich_help_panel=SPEED, cls=_Benchmarks)
def bench(
    what: Annotated[
        Literal["fusion", "harmonifuse", "cache", "epoch", "scaling", "extraction", "serve"],
        typer.Argument(help="What is measured."),
    ] = "fusion",
    frames: Annotated[
        int, typer.Option(min=2, rich_help_panel="fusion", help="In a batch.")
    ] = 1024,
    tokens: Annotated[
        int, typer.Option(min=2, rich_help_panel="harmonifuse", help="Of a text.")
    ] = 100,
    preset: Annotated[
        Literal["paper", "small", "tiny"],
        typer.Option(rich_help_panel="harmonifuse", help="How large the transformer is."),
    ] = "small",
    shape: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel="extraction", help="Of an encoder; may be repeated."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", rich_help_panel="extraction", help="Beside the same compiled."),
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(rich_help_panel="cache", help="On the disk that is meant; a temporary one."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(callback=run_there, rich_help_panel="serve", help="A run folder.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, rich_help_panel="serve", help="At once.")] = 32,
    seconds: Annotated[
        float,
        typer.Option(
            min=1,
            rich_help_panel="cache, epoch, scaling, extraction, serve",
            help="Of speech; of load, for serve.",
        ),
    ] = 60,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel="fusion, harmonifuse, cache, epoch, scaling, extraction",
            help="Medians of so many.",
        ),
    ] = 20,
    device: Annotated[
        Literal["all", "cpu", "cuda"],
        typer.Option(
            rich_help_panel="fusion, harmonifuse, extraction",
            help="all: the CPU, and a GPU if there is one.",
        ),
    ] = "all",
    processor: Annotated[
        bool,
        typer.Option(
            rich_help_panel="cache, epoch, scaling, extraction",
            help="Processor time, where others use the machine.",
        ),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Of torch on the CPU.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print data; of extraction for `plan --rates`.")
    ] = False,
) -> None:
    """Time a method against plain references, side by side in one run.

    fusion: against a plain reference and the machine's own ceiling, which is the matrix products
    alone for HConv, reading every layer once for the weighted sum (twice with the gradient); memory
    is what is held at most beside the layers.

    harmonifuse: writing against the same model without a cache and against the bare decoder
    without fusion; a training step against one that reads the last layer alone.

    cache: writing shards against the same bytes written plainly, reading them against a copy from
    memory; layers apart, as they are stored, against the layers of a frame side by side.

    epoch: on stored layers of a HuBERT-base of random weights, against the trained part alone on
    batches in memory, and against running the encoder; memory of a step against a plain reference.

    scaling: extraction and an epoch by encoders, layers, hours and processes, narrow encoders.

    extraction: frozen encoders with random weights against transformers' own on padded batches of
    8, against s3prl's WavLM where it is installed, and against large matrix products.

    serve: a service of --run under load by so many clients for so many seconds, every answer
    compared with the one that the same recording has alone.
    """
    import torch

    torch.set_num_threads(threads)
    clock = time.process_time if processor else time.perf_counter
    about: dict[str, Any] = {"bench": what, "threads": threads, "torch": torch.__version__}
    tables: Iterable[Any]
    if what == "serve":
        if run is None:
            raise SpeechFuseError("bench serve needs a run; give its folder with --run")
        from speechfuse.bench.serve import serve_table

        tables = [serve_table(run, clients, seconds)]
    elif what == "extraction":
        from speechfuse.bench import extraction

        shapes = extraction.checked_shapes(shape)
        found = [
            *extraction.bench_extraction(seconds, repeats, shapes, device, clock, compiled=compiled)
        ]
        about["rates"] = extraction.extraction_rates(found)
        tables = extraction.extraction_tables(found, seconds, repeats, device, clock)
    elif what == "fusion":
        from speechfuse.bench.fusion import bench_table

        tables = [bench_table(frames, repeats, device)]
    elif what == "cache":
        from speechfuse.bench.cache import cache_tables

        tables = cache_tables(seconds, repeats, folder, clock)
    elif what == "epoch":
        from speechfuse.bench.epoch import epoch_table
        from speechfuse.bench.step import step_table

        tables = [epoch_table(seconds, repeats, clock), step_table(seconds)]
    elif what == "scaling":
        from speechfuse.bench.scaling import scaling_table

        tables = [scaling_table(seconds / 3600, repeats, clock)]
    else:
        from speechfuse.bench.harmonifuse import Sizes, harmonifuse_tables

        tables = harmonifuse_tables(Sizes(preset, tokens=tokens), repeats, device)
    if as_json:
        names = ("title", "columns", "rows")
        about["tables"] = [dict(zip(names, table, strict=True)) for table in tables]
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for title, columns, rows in tables:
        print_table(title, columns, rows)
