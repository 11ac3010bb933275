"""Commands before training: probe, select, plan, extract, cost, doctor, parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from speechfuse.cli.shared import (
    BEFORE,
    LIMIT_GB,
    LIMIT_HOURS,
    Overrides,
    RecipePath,
    TrustCode,
    Yes,
    app,
)
from speechfuse.cli.terminal import print_finding, print_table, shown_progress
from speechfuse.errors import SpeechFuseError


@app.command(rich_help_panel=BEFORE)
def probe(
    file: Annotated[Path, typer.Argument(help="Encoders, a corpus and properties, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results, picture, report.")] = None,
    yes: Yes = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, like folds=4 or 'properties=[pitch]'.")
    ] = None,
) -> None:
    """Which layer holds pitch, energy, characters, speaker, emotion: linear probes of each.

    Speakers are held out, the strength of a probe is chosen inside the training speakers. What is
    done is kept in OUT/results.jsonl, so that the same command goes on where it stopped.
    """
    from speechfuse.experiments.probing.file import read_probe

    read = read_probe(file, overrides or ())
    from speechfuse.experiments.probing.report import findings, probe_table, write_probe_report
    from speechfuse.experiments.probing.run import probed_clips, run_probe

    folder = out or Path("runs") / read.name
    with shown_progress() as progress:
        clips = probed_clips(read, progress)
        results = run_probe(read, clips, folder, progress, asking(yes))
    print_table(*probe_table(read, clips, results))
    for line in findings(read, results):
        typer.echo(line)
    typer.echo(f"report: {write_probe_report(read, clips, results, folder)}")


@app.command(rich_help_panel=BEFORE)
def select(
    file: Annotated[Path, typer.Argument(help="Candidate encoders and tasks, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    trained: Annotated[
        Path | None, typer.Option(help="Runs of single layers: how well they were foreseen.")
    ] = None,
    yes: Yes = False,
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print data, fractions of one.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, like limits.utterances=200.")
    ] = None,
) -> None:
    """Which encoder, which layer and which pair a task should read: probes, in minutes.

    Every layer is probed in closed form on speakers that are held out, on training and development
    data alone; then pairs of the best layers of two encoders, and what the second one adds.
    """
    from speechfuse.experiments.selecting.file import read_selection

    read = read_selection(file, overrides or ())
    from speechfuse.experiments.selecting import report
    from speechfuse.experiments.selecting import trained as results
    from speechfuse.experiments.selecting.run import select as select_encoders

    folder = out or Path("runs") / read.name
    known = results.read_trained(read, trained) if trained else []
    left_out: dict[str, str] = {}
    with shown_progress() as progress:
        wanted = results.pairs_of(known)
        found = select_encoders(
            read, folder, wanted, progress, left_out=left_out, before=asking(yes)
        )
    path = report.write_select_report(read, found, folder, known, left_out)
    if as_json:
        typer.echo(json.dumps(report.select_json(read, found, known, left_out), indent=2))
        return
    for table in report.select_tables(read, found, known):
        print_table(*table)
    for selected in found:
        typer.echo(report.advice(selected))
    for line in report.omissions(left_out):
        typer.echo(f"warning: {line}")
    typer.echo(f"report: {path}")


@app.command(rich_help_panel=BEFORE)
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Of audio: what it takes on many GPUs instead.")
    ] = None,
    utterances: Annotated[
        int | None, typer.Option(min=1, help="In these hours; of 5 s each if left out.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many there are, with --hours.")] = 1,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            help="Seconds of audio that an upstream takes in a second of a GPU, NAME=RATE, or one "
            "for all; as `bench extraction` prints."
        ),
    ] = None,
    rates: Annotated[
        Path | None, typer.Option(help="What `bench extraction --json` printed, for such rates.")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Run each upstream on some seconds here, for its rate.")
    ] = False,
    training_rate: Annotated[
        float | None, typer.Option(min=0, help="The same of training on stored layers.")
    ] = None,
    reading: Annotated[float, typer.Option(min=0.01, help="GB/s that a GPU is given.")] = 1.0,
    price: Annotated[
        float, typer.Option(min=0, help="Price of an hour of a GPU, any currency.")
    ] = 0.0,
) -> None:
    """Shapes, parameters, multiply-adds, memory, and size and time of the stored layers.

    No weights are read and times are guessed from multiply-adds, unless there is --rate, --rates
    or --measure. With --hours: shards, hours, storage and cost of so much audio on so many GPUs.
    """
    from speechfuse.build import frozen_upstreams, read_recipe
    from speechfuse.measure import best_device
    from speechfuse.rates import bench_rates, find_rates

    read = read_recipe(recipe, overrides or ())
    given, where, device = _rates(rate or ()), "", "cuda"
    rest = {}
    if rates or measure:
        rest = {n: up for n, up in frozen_upstreams(read).items() if not {n, ""} & {*given}}
    if rates:
        found, where, device = bench_rates(rates, rest, None if hours else best_device().type)
        given |= found
    if hours is None:
        from speechfuse.plan import plan_recipe

        tables = plan_recipe(read, given, measure=measure)
    else:
        from speechfuse.at_scale import scale_tables

        if measure and (rest := {n: up for n, up in rest.items() if n not in given}):
            found, how = find_rates(rest, best_device(), {}, measure=True)
            where = " and ".join(filter(None, [where, how]))
            device = device if rates else best_device().type
            given |= found
        tables = scale_tables(
            read,
            hours,
            gpus,
            given,
            training_rate=training_rate,
            reading=reading,
            price=price,
            where=where,
            device=device,
            utterances=utterances,
        )
    for title, columns, rows in tables:
        print_table(title, columns, rows)


@app.command(rich_help_panel=BEFORE)
def extract(
    recipe: RecipePath,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option(help="Also past the limits.")] = False,
    limit_gb: Annotated[float, typer.Option(min=0, help="Ask before more is written.")] = LIMIT_GB,
    limit_hours: Annotated[
        float, typer.Option(min=0, help="Ask before it takes longer.")
    ] = LIMIT_HOURS,
    processes: Annotated[int, typer.Option(min=1, help="On this machine, one for a GPU.")] = 1,
    verify: Annotated[bool, typer.Option(help="Read every shard, compare its checksum.")] = False,
) -> None:
    """Compute a recipe's frozen layers once; `train` would do so first.

    Prints what is there, what is missing, its size and about how long it takes. The same command
    on several machines that share the folder shares the work. It goes on where it was stopped.
    """
    from speechfuse.build import read_recipe

    read = read_recipe(recipe, overrides or ())
    from speechfuse.extract import extract, extraction_jobs, int8_lines
    from speechfuse.taskdata import load_tasks

    with shown_progress() as progress:
        jobs = extraction_jobs(read, load_tasks(read, progress=progress))
    ask_first(read, jobs, yes=yes, limit_gb=limit_gb, limit_hours=limit_hours, processes=processes)
    with shown_progress() as progress:
        extract(read, jobs, progress, processes=processes, verify=verify)
    for line in int8_lines(jobs):
        typer.echo(line)
    for folder in dict.fromkeys(job.store.folder for job in jobs):
        typer.echo(f"stored in {folder}")


@app.command(rich_help_panel=BEFORE)
def cost(
    recipe: RecipePath,
    overrides: Overrides = None,
    interface: Annotated[
        list[str] | None, typer.Option(help="One of your own, module:Class; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of audio in a pass.")] = 10.0,
    repeats: Annotated[int, typer.Option(min=1, help="Medians of so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of torch on the CPU.")] = 1,
) -> None:
    """What every interface costs on a recipe's encoders, beside the encoders themselves."""
    import torch

    from speechfuse.build import read_recipe
    from speechfuse.cost import cost_table

    torch.set_num_threads(threads)
    read = read_recipe(recipe, overrides or ())
    print_table(*cost_table(read, interface or (), seconds=seconds, repeats=repeats))


@app.command(rich_help_panel=BEFORE)
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe, whose encoders and store are looked at.")
    ] = None,
    overrides: Overrides = None,
    encoder: Annotated[
        str | None, typer.Option(help="One encoder instead: a folder or a name on the hub.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look for what would go wrong: libraries, cores, GPU, disk, and an encoder by measuring it.

    Ends with exit code 1 if there is a problem; a warning is none.
    """
    from speechfuse.doctor.finding import to_json
    from speechfuse.doctor.report import examine

    if recipe and encoder:
        raise SpeechFuseError("doctor looks at a recipe or at one --encoder; give one of them")
    read = None
    if recipe:
        from speechfuse.build import read_recipe

        read = read_recipe(recipe, overrides or ())
    found = []
    for one in examine(read, encoder):
        found.append(one)
        if not as_json:
            print_finding(one.status, one.about, one.found, one.remedy)
    if as_json:
        typer.echo(to_json(found))
    else:
        counts = {s: sum(one.status == s for one in found) for s in ("problem", "warning", "ok")}
        typer.echo(", ".join(f"{s}: {n}" for s, n in counts.items()))
    if any(one.status == "problem" for one in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=BEFORE)
def parts(
    role: Annotated[str | None, typer.Argument(help="upstream, interface, ...")] = None,
) -> None:
    """What a recipe can name, with every option and its default."""
    from speechfuse import catalog
    from speechfuse.errors import RecipeError, did_you_mean

    if role is not None and role not in catalog.ROLES:
        raise RecipeError(f"no role '{role}'; {did_you_mean(role, catalog.ROLES)}")
    for name, table in catalog.ROLES.items():
        if role in (None, name):
            rows = [[kind, ", ".join(catalog.option_lines(cls))] for kind, cls in table.items()]
            print_table(name, ["kind", "options"], rows)


def _rates(given: Sequence[str]) -> dict[str, float]:
    """By name, of texts like wavlm=500; a number alone is under no name."""
    rates = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            rates[name] = float(number)
        except ValueError:
            rates[name] = 0.0
        if not rates[name] > 0:
            raise SpeechFuseError(f"--rate {text}: expected NAME=RATE with a rate above 0")
    return rates


def asking(yes: bool, processes: int = 1) -> Any:
    """For what extracts on its way: says and refuses what is past the limits, if nobody agreed."""
    return partial(ask_first, yes=yes, small=False, processes=processes)


def ask_first(
    recipe: Any,
    jobs: Sequence[Any],
    *,
    yes: bool,
    small: bool = True,
    limit_gb: float | None = None,
    limit_hours: float | None = None,
    processes: int = 1,
) -> None:
    """Print what an extraction will write and how long it takes; refuse what nobody agreed to.

    small: print it also where it is within the limits. Limits that are left out are no options.
    processes: that extract at once.
    """
    from speechfuse.extract import extraction_table
    from speechfuse.rates import duration

    if not small and not any(job.missing for job in jobs):
        return
    gb = LIMIT_GB if limit_gb is None else limit_gb
    hours = LIMIT_HOURS if limit_hours is None else limit_hours
    table, size, seconds = extraction_table(recipe, jobs, processes)
    past = size > gb * 1e9 or seconds > hours * 3600
    if small or past:
        print_table(*table)
    if past and not yes:
        limits = f"--limit-gb {gb:g} or --limit-hours {hours:g}"
        raise SpeechFuseError(
            f"{size / 1e9:.1f} GB of layers in about {duration(seconds)}, past "
            f"{f'{gb:g} GB or {hours:g} h' if limit_gb is None else limits}; nothing was "
            "computed, add --yes to go on"
        )
