"""Commands to begin with: quickstart, train, compare, predict, serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechfuse.bars import on_screen
from speechfuse.cli.before import asking
from speechfuse.cli.runs import print_metrics, run_and_report
from speechfuse.cli.shared import (
    BEGIN,
    Device,
    Jobs,
    Overrides,
    RecipePath,
    RunFolder,
    TrustCode,
    Yes,
    app,
)
from speechfuse.cli.terminal import print_table, shown_progress
from speechfuse.errors import SpeechFuseError
from speechfuse.runs import runs_below


@app.command(rich_help_panel=BEGIN)
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for runs, table and report.")] = Path(
        "runs/quickstart"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row, with other seeds.")] = 1,
    interfaces: Annotated[
        str,
        typer.Option(help="A further row on both encoders for each: all, or kinds and commas."),
    ] = "",
    jobs: Jobs = 0,
) -> None:
    """Make synthetic speech, train seven models, three of which fuse two small encoders, print a
    table, write a report.
    """
    from speechfuse.experiments.quickstart import quickstart_sweep

    run_and_report(quickstart_sweep(seeds, interfaces), out, None, jobs)


@app.command(rich_help_panel=BEGIN)
def train(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Run folder to write, or to go on in.")],
    overrides: Overrides = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on each machine, a GPU each, or the CPU.")
    ] = None,
    num_nodes: Annotated[
        int | None, typer.Option(min=1, help="Machines, on which torchrun or srun begin this.")
    ] = None,
    strategy: Annotated[
        Literal["ddp", "fsdp"] | None, typer.Option(help="All weights in each process, or a part.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Extract layers, train, evaluate; goes on where an earlier call stopped.

    Where more than 10 GB or an hour of layers are missing, it says so and computes nothing without
    --yes.

    Under torchrun and srun it takes its place among the others, whom they count. The options are
    training.devices, training.num_nodes and training.strategy of the recipe.
    """
    from speechfuse.build import read_recipe

    options = {"devices": devices, "num_nodes": num_nodes, "strategy": strategy}
    given = [f"training.{name}={value}" for name, value in options.items() if value is not None]
    read = read_recipe(recipe, [*(overrides or ()), *given])
    import torch

    from speechfuse.group import launched_rank
    from speechfuse.train import train_run

    rank = launched_rank()
    # Those that were launched all extract; one that is alone begins more where each has a GPU.
    alone = min(read.training.devices or 1, max(1, torch.cuda.device_count()))
    ask = asking(yes, rank.count if rank else alone)
    with shown_progress(rank is None or rank.number == 0) as progress:
        metrics = train_run(read, out, progress, rank, before=ask)
    if metrics:
        print_metrics(metrics)
        typer.echo(f"run: {out}")


@app.command(rich_help_panel=BEGIN)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            callback=lambda runs: [one for one in runs if runs_below(one)],
            help="Run folders, or folders with runs below them.",
        ),
    ],
    split: Annotated[Literal["test", "dev"], typer.Option(help="Scores of it.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print data, fractions of one.")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Which differences between runs are real: the first against each of the others, paired.

    Runs that differ in nothing but their seed are averaged, folds of one recipe are pooled, so
    that a row of a sweep is one folder: speechfuse compare out/weighted-sum out/hconv
    """
    from speechfuse.experiments import compare as comparing

    systems = comparing.find_systems(runs)
    found = comparing.compare(systems, split)
    if as_json:
        typer.echo(json.dumps(comparing.compare_json(systems, found, split), indent=2))
        return
    for table in comparing.compare_tables(systems, found, split):
        print_table(*table)
    for line in [*comparing.about_systems(systems), comparing.caution(found)]:
        typer.echo(line)


@app.command(rich_help_panel=BEGIN)
def predict(
    run: RunFolder,
    audio: Annotated[list[str], typer.Argument(help="Audio files, folders of them, patterns.")],
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task; more of them with commas, or again.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="In words, for a task that was trained with such.")
    ] = None,
    format: Annotated[
        Literal["text", "json", "csv", "srt"], typer.Option(help="How answers are written.")
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, or to go on with; for srt a folder, of files as given."),
    ] = None,
    layers: Annotated[bool, typer.Option(help="With the weights of layers (json).")] = False,
    device: Device = None,
    trust_code: TrustCode = False,
) -> None:
    """Transcribe, name the emotion, compare speakers: one line for each file and task.

    Long recordings are read in stretches that end at pauses. A file that cannot be read has a line
    that says why, and the exit code is 1 then; the others are answered. Pairs of more than 20 files
    are compared only if --task names what compares them.
    """
    from speechfuse.sounds import find_audio

    wrong: dict[str, str] = {}
    files = find_audio(audio, wrong)
    from speechfuse.pipeline.speech_model import SpeechModel
    from speechfuse.predict import asked_tasks, predict_into

    named = [name.strip() for given in task or () for name in given.split(",")]
    model = SpeechModel(run, tasks=named, device=device)
    tasks = asked_tasks(model, [*files], named, format, out)
    if not named and (without := [name for name in model.tasks if name not in tasks]):
        typer.echo(f"pairs of files are not compared; --task {','.join(without)} does", err=True)
    failed: dict[str, str] = {}
    with shown_progress() as progress:
        lines = predict_into(
            model,
            [*files],
            tasks,
            format,
            out,
            prompt=prompt,
            layers=layers,
            progress=progress if out or on_screen() else None,
            wrong=wrong,
            failed=failed,
            places=files,
        )
        for line in lines:
            typer.echo(line)
    if out:
        given = len(files) + len(wrong)
        answered = given - len(failed)
        typer.echo(f"{out} holds the answers to {answered} of {given} recordings", err=True)
    elif format == "srt":  # which has no place for errors
        for name, why in failed.items():
            typer.echo(f"{name}\terror\t{why}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command(rich_help_panel=BEGIN)
def serve(
    run: RunFolder,
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 lets everybody in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 7860,
    page: Annotated[bool, typer.Option(help="The page beside the HTTP service.")] = True,
    upload_mb: Annotated[float, typer.Option(min=0.01, help="Largest upload.")] = 50.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Longest recording, seconds.")] = 600.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 64,
    backlog: Annotated[float, typer.Option(min=1, help="Seconds of audio held at once.")] = 3600.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 120.0,
    wait_ms: Annotated[float, typer.Option(min=0, help="To gather a batch.")] = 10.0,
    batch_seconds: Annotated[float, typer.Option(min=1, help="Audio in a batch.")] = 60.0,
    stretch: Annotated[
        float, typer.Option(min=1, help="Seconds of a long recording read at once.")
    ] = 20.0,
    device: Device = None,
    trust_code: TrustCode = False,
) -> None:
    """Serve a run: a page to record or upload on, and an HTTP service.

    POST /v1/predict, /healthz, /metrics and /openapi.json. Nothing is loaded from elsewhere, and
    no file of this machine can be read. Needs the extra `demo`.
    """
    try:
        from speechfuse.serve.limits import Limits
        from speechfuse.serve.server import serve as serve_run
    except ModuleNotFoundError as error:
        raise SpeechFuseError(
            f"no module '{error.name}': the page and the service need the extra `demo`; run "
            "pip install 'speechfuse[demo]'"
        ) from error
    limits = Limits(upload_mb, duration, queue, backlog, timeout, wait_ms, batch_seconds)
    serve_run(
        run,
        host,
        port,
        limits,
        page=page,
        device=device,
        stretch=stretch,
        ready=lambda address: typer.echo(f"{run} on {address}"),
    )
