"""Commands for others: publish, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechfuse.cli.shared import OTHERS, RunFolder, TrustCode, app
from speechfuse.cli.terminal import print_table, shown_progress
from speechfuse.errors import SpeechFuseError


@app.command(rich_help_panel=OTHERS)
def publish(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Where an encoder that lies in a folder is: UPSTREAM=ORG/NAME@REVISION."),
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, like apache-2.0.")] = None,
    push: Annotated[str | None, typer.Option(help="Put it on the hub as ORG/NAME.")] = None,
    private: Annotated[bool, typer.Option(help="Not for everyone, with --push.")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Write a run as a Hugging Face folder: trained weights, what `load` needs, a model card."""
    from speechfuse.checkpoint import Run
    from speechfuse.publish import push_to_hub, save_pretrained
    from speechfuse.recipe import code_of

    pairs = [text.partition("=") for text in source or ()]
    if bad := [name for name, _, place in pairs if not place]:
        raise SpeechFuseError(f"--source {bad[0]}: expected UPSTREAM=ORG/NAME@REVISION")
    sources = {name: place for name, _, place in pairs}
    with shown_progress() as progress:
        made = save_pretrained(
            run, folder, sources=sources, license=license, name=push, progress=progress
        )
    typer.echo(f"published in {made}; read its README.md before others do")
    if code := code_of(Run(made).recipe()):
        typer.echo(f"others need your code for {', '.join(code)}, and --trust-code")
    if push:
        typer.echo(push_to_hub(made, push, private=private))


@app.command(rich_help_panel=OTHERS)
def export(
    run: RunFolder,
    format: Annotated[Literal["onnx", "torch"], typer.Option(help="Of the graphs.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN-FORMAT beside the run if left out.")
    ] = None,
    int8: Annotated[
        bool, typer.Option(help="Weights in 8 bits; measures what that costs on the corpora.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Write encoders, fusion and heads as graphs that run without speechfuse, and compare them."""
    from speechfuse.export.package import default_folder, export_run
    from speechfuse.export.report import scored
    from speechfuse.metrics import percent

    folder = out or default_folder(run, format, int8=int8)
    with shown_progress() as progress:
        report = export_run(run, folder, format=format, int8=int8, progress=progress)
    rows = []
    for task, one in report["parity"]["tasks"].items():
        equal = f"{one['equal']} of {one['decisions']}" if one["decisions"] else "numbers only"
        rows.append([task, f"{one['largest']:.1e}", equal])
    title = "Package in float32 against run" if int8 else "Package against run"
    print_table(title, ["task", "largest difference", "equal answers"], rows)
    if int8:
        columns = ["task", "split", "metric", "float32", "8 bits"]
        costs = [
            [task, split, metric, percent(whole), percent(rounded)]
            for task, split, metric, whole, rounded in scored(report)
        ]
        if costs:
            print_table("What 8 bits cost\n% with 95 % interval", columns, costs)
        else:
            typer.echo("the run's corpora are not here: what 8 bits cost was not measured")
    names = {"library": "speechfuse", "onnx": "float32", "torch": "package", "int8": "8 bits"}
    times = [f"{names[k]} {t:.2f}" for k, t in report["seconds"].items() if k in names]
    typer.echo(f"seconds for {report['seconds']['audio']} s of audio: {', '.join(times)}")
    total = sum(report["bytes"].values()) / 1e6
    typer.echo(f"{total:,.1f} MB in {folder}; python {folder / 'run.py'} clip.wav, see README.md")
