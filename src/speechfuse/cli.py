"""The command line. Only this file prints and chooses exit codes; 2 is the user's error."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from speechfuse.errors import SpeechFuseError
from speechfuse.runs import check_run, runs_below

_BEGIN, _DATA, _BEFORE = "Begin here", "Data", "Before training"
_RUNS, _OTHERS, _SPEED = "Runs", "For others", "Speed"


class _Commands(TyperGroup):
    """In groups, with whole first sentences; a wrong choice names the nearest."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for panel in (_BEGIN, _DATA, _BEFORE, _RUNS, _OTHERS, _SPEED):
            groups[panel] = []
        for name, command in self.commands.items():
            assert isinstance(command, TyperCommand)
            about = (command.help or "").partition("\n\n")[0]
            groups[str(command.rich_help_panel)].append((name, " ".join(about.split())))
        for panel, rows in groups.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # of a library
            if " is not one of " in error.message:
                wrong, *known = re.findall("'([^']*)'", error.message)
                if near := difflib.get_close_matches(wrong, known, n=1):
                    error.message += f" Did you mean '{near[0]}'?"
            raise


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


# Everything heavy is imported inside the commands: --help answers before torch is loaded.
app = typer.Typer(
    cls=_Commands,
    help="Fuse the layers of several speech foundation models and train small heads on the "
    "result. New here? Run: speechfuse quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, like training.steps=100.")
]
RecipePath = Annotated[Path, typer.Argument(help="A recipe, a YAML file.")]
Jobs = Annotated[int, typer.Option(min=0, help="Runs at a time; 0: a core each, at most 4.")]
LIMIT_GB, LIMIT_HOURS = 10.0, 1.0  # of an extraction that is begun without --yes


def _there(run: Path | None) -> Path | None:
    """Checked before the command begins, which loads torch."""
    return None if run is None else check_run(run)


RunFolder = Annotated[Path, typer.Argument(callback=_there, help="A run folder made by train.")]


def _trust(context: typer.Context, trust: bool) -> None:
    """For as long as the command runs."""
    if trust:
        from speechfuse.catalog import trusted_code

        context.with_resource(trusted_code())


TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=_trust,
        help="Import parts that the run names as module:Class: whoever wrote them can do anything.",
    ),
]


def main() -> None:
    """Run a command; the user's errors become one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except SpeechFuseError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no room, no permission: the system's own words are the clearest
        print(f"error: {error}; check path, permission and free room", file=sys.stderr)
        sys.exit(2)


@app.command(rich_help_panel=_BEGIN)
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
    """Make synthetic speech, fuse two small encoders in six ways, print a table, write a report."""
    from speechfuse.experiments.quickstart import quickstart_sweep

    _run_sweep(quickstart_sweep(seeds, interfaces), out, None, jobs)


@app.command(rich_help_panel=_RUNS)
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep: rows, conditions, folds and seeds.")],
    out: Annotated[Path | None, typer.Option(help="Folder for runs, table and report.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be repeated.")] = None,
    split: Annotated[
        Literal["test", "dev"], typer.Option(help="Print scores of this split.")
    ] = "test",
    jobs: Jobs = 1,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, like recipe.training.steps=100.")
    ] = None,
) -> None:
    """Run every row of a sweep and print its table; finished runs are not repeated."""
    from speechfuse.experiments.sweep import read_sweep

    read = read_sweep(file, overrides or ())
    _run_sweep(read, out or Path("runs") / read.name, row, jobs, split)


@app.command(rich_help_panel=_BEFORE)
def probe(
    file: Annotated[Path, typer.Argument(help="Encoders, a corpus and properties, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results, picture, report.")] = None,
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
    with _progress() as progress:
        clips = probed_clips(read, progress)
        results = run_probe(read, clips, folder, progress)
    _table(*probe_table(read, clips, results))
    for line in findings(read, results):
        typer.echo(line)
    typer.echo(f"report: {write_probe_report(read, clips, results, folder)}")


@app.command(rich_help_panel=_BEFORE)
def select(
    file: Annotated[Path, typer.Argument(help="Candidate encoders and tasks, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    trained: Annotated[
        Path | None, typer.Option(help="Runs of single layers: how well they were foreseen.")
    ] = None,
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
    with _progress() as progress:
        found = select_encoders(read, folder, results.pairs_of(known), progress)
    path = report.write_select_report(read, found, folder, known)
    if as_json:
        typer.echo(json.dumps(report.select_json(read, found, known), indent=2))
        return
    for table in report.select_tables(read, found, known):
        _table(*table)
    for selected in found:
        typer.echo(report.advice(selected))
    typer.echo(f"report: {path}")


@app.command(rich_help_panel=_BEFORE)
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Of audio: what it takes on many GPUs instead.")
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
        )
    for title, columns, rows in tables:
        _table(title, columns, rows)


@app.command(rich_help_panel=_DATA)
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="synthetic, synthetic-languages, synthetic-mix, a manifest, a Kaldi folder, a "
            "prepared corpus to --join or --mix, or a corpus by name."
        ),
    ],
    place: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where the corpus so named lies.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Corpus folder to write.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Keep these: COLUMN=VALUE,VALUE...; may be repeated."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Only these languages, like de,en (emilia).")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(min=0.0, help="The first so many hours (emilia).")
    ] = None,
    min_dnsmos: Annotated[
        float | None, typer.Option(help="Least quality, for example 3.2 (emilia).")
    ] = None,
    trials: Annotated[Path | None, typer.Option(help="Pairs as `label enrol test`.")] = None,
    join: Annotated[
        int, typer.Option(min=1, help="Join so many clips of a speaker into one utterance.")
    ] = 1,
    mix: Annotated[
        int, typer.Option(min=1, help="Mix turns of so many speakers, for diarization.")
    ] = 1,
) -> None:
    """Import a corpus: recordings, transcripts, speakers, emotions and splits.

    By name, as its owner ships it, from the FOLDER where it lies: crema_d, emilia, emodb,
    fluent_commands, fsdd, iemocap, librispeech, ml_superb (one hour of each language),
    ml_superb_10min, ravdess or voxceleb1.

    Examples: speechfuse prepare emodb /data/EmoDB --out corpora/emodb, or speechfuse
    prepare librispeech /data/LibriSpeech --only part=train-clean-100,dev-clean,test-clean.
    """
    from speechfuse.data.manifests import prepare as prepare_corpus
    from speechfuse.data.readers.table import find_reader
    from speechfuse.taskdata import MADE, corpora_folder, is_prepared, remade

    reader, path = find_reader(source) if place else None, place or Path(source)
    full = path.resolve()  # of "." and "manifest.tsv" too the folder has a name
    name = full.name if path.is_dir() or path.stem != "manifest" else full.parent.name
    folder = (
        out
        or corpora_folder() / f"{source if place else Path(name).stem}{'-mix' if mix > 1 else ''}"
    )
    chosen = _columns(only or ())
    filters = {
        "language": _names(language) or None,
        "max_hours": max_hours,
        "min_dnsmos": min_dnsmos,
    }
    with _progress() as progress:
        if max(join, mix) > 1 and (source in MADE or is_prepared(path)):
            corpus = remade(source, folder, join=join, mix=mix, progress=progress)
        elif source in MADE:
            corpus = MADE[source](folder, progress=progress)
        else:
            corpus = prepare_corpus(
                path,
                folder,
                reader=reader,
                filters={name: value for name, value in filters.items() if value is not None},
                only=chosen,
                trials=trials,
                join=join,
                mix=mix,
                progress=progress,
            )
    for key, value in corpus.summary().items():
        typer.echo(f"{key}: {value}")
    typer.echo(f"folder: {corpus.folder}")


@app.command(rich_help_panel=_DATA)
def audit(
    corpus: Annotated[str, typer.Argument(help="A prepared corpus by name or folder, a manifest.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="asr, emotion, ... or a column of classes; may be repeated."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A check that is never serious here, like speakers; may be repeated."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: a core each, at most 4.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print data.")] = False,
) -> None:
    """What is wrong with a corpus: leaks between splits, copies, odd labels, bad audio.

    Speakers, texts and recordings that are in two splits, files that are copies byte for byte,
    sample by sample or by a fingerprint (another format, level, cut or noise), labels by split,
    and clipped, silent, band-limited, cut or unreadable audio. Exit code 1 if something is serious:
    a leak into the test split, or audio that cannot be used.
    """
    from speechfuse.audit.run import audit_corpus, audit_json, audit_tables
    from speechfuse.taskdata import find_corpus

    with _progress() as progress:
        found = audit_corpus(
            find_corpus(corpus, progress),
            task or (),
            jobs=jobs or min(4, os.cpu_count() or 1),
            allow=allow or (),
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(audit_json(found), indent=2, ensure_ascii=False))
    else:
        findings, *labels = audit_tables(found)
        if found.findings:
            _table(*findings, left=True)
        for table in labels:
            _table(*table)
        if not found.findings:
            typer.echo(f"{findings[0]}: nothing found")
    if found.serious:
        raise typer.Exit(1)


@app.command(rich_help_panel=_DATA)
def pseudo_label(
    corpus: Annotated[str, typer.Argument(help="A prepared corpus by name, or a manifest.")],
    teacher: Annotated[
        str, typer.Option(help="A run folder, a Hugging Face audio classifier or its hub name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on in.")],
    task: Annotated[str | None, typer.Option(help="Of the run, if several name classes.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of the hub's model.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Classes to keep; angry,happy,neutral,sad or the run's.")
    ] = None,
    renamed: Annotated[
        str | None,
        typer.Option("--map", help="Other names: TEACHER=WANTED,..., like hap=happy,exc=happy."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Least confidence, a softmax share.")] = 0.9,
    balance: Annotated[
        str, typer.Option(help="At most so many of each class; equal: as of the rarest; none.")
    ] = "equal",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Label these: COLUMN=VALUE,VALUE...; may be repeated."),
    ] = None,
    seen: Annotated[
        str, typer.Option(help="Corpora that the teacher was trained on beside those on its card.")
    ] = "",
    trust_code: TrustCode = False,
) -> None:
    """Label a corpus with a teacher's emotions; keep those it is sure of, as many of each.

    Writes OUT/manifest.jsonl, which `prepare`, a task's corpus and its extra_training read. The
    same command goes on after a stop; other thresholds choose anew from the same answers.
    """
    from speechfuse.pseudo.labelling import find_teacher, pseudo_label

    if balance not in ("equal", "none") and not balance.isdigit():
        raise SpeechFuseError(f"--balance {balance}: expected equal, none or a number")
    with _progress() as progress:
        summary = pseudo_label(
            corpus,
            find_teacher(teacher, task, revision),
            out,
            labels=_names(labels) or None,
            mapping=_pairs(renamed),
            threshold=threshold,
            balance=int(balance) if balance.isdigit() else balance,  # type: ignore[arg-type]
            only=_columns(only or ()),
            seen=_names(seen),
            progress=progress,
        )
    classes = summary["classes"]
    columns = ["class", *next(iter(classes.values()))]
    rows = [[name, *(f"{n:,}" for n in counts.values())] for name, counts in classes.items()]
    _table("", columns, rows)
    for why, count in summary["dropped"].items():
        typer.echo(f"dropped, {why}: {count:,}")
    if summary["had a label"]:
        same, had = summary["of these the same"], summary["had a label"]
        typer.echo(f"of {had:,} kept that had a label, {100 * same / had:.1f} % have the same")
    if known := summary["speakers that it was trained on"]:
        typer.echo(
            f"the teacher was trained on {known:,} of these speakers: surer than it is right"
        )
    if set(splits := summary["kept by split"]) - {"none", "train"}:
        shown = ", ".join(f"{split} {count:,}" for split, count in splits.items())
        typer.echo(f"by split: {shown}; extra_training learns from train and none alone")
    known = ", ".join(summary["seen by the teacher"])
    typer.echo(f"the teacher was trained on: {known or 'its card does not say; tell with --seen'}")
    typer.echo(f"kept {summary['kept']:,} of {summary['utterances']:,}: {out / 'manifest.jsonl'}")


@app.command(rich_help_panel=_BEGIN)
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
    yes: Annotated[
        bool, typer.Option(help="Extract layers also past the limits of extract.")
    ] = False,
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
    from speechfuse.group import launched_rank
    from speechfuse.train import train_run

    rank = launched_rank()
    with _progress(rank is None or rank.number == 0) as progress:
        metrics = train_run(
            read, out, progress, rank, before=lambda *jobs: _ask(*jobs, yes=yes, small=False)
        )
    if metrics:
        _print_metrics(metrics)
        typer.echo(f"run: {out}")


@app.command(rich_help_panel=_BEFORE)
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
    from speechfuse.extract import extract, extraction_jobs
    from speechfuse.taskdata import load_tasks

    with _progress() as progress:
        jobs = extraction_jobs(read, load_tasks(read, progress=progress))
    _ask(read, jobs, yes=yes, limit_gb=limit_gb, limit_hours=limit_hours)
    with _progress() as progress:
        extract(read, jobs, progress, processes=processes, verify=verify)
    for job in jobs:
        if job.store.error is not None:
            typer.echo(f"int8 of {job.name}: off by {100 * job.store.error:.2f} %, relative rms")
    for folder in dict.fromkeys(job.store.folder for job in jobs):
        typer.echo(f"stored in {folder}")


@app.command(rich_help_panel=_RUNS)
def evaluate(
    run: RunFolder,
    beam: Annotated[
        int | None,
        typer.Option(min=1, help="Texts kept while one is searched; prints, and changes no file."),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Score a run again from its weights; the numbers are those that training gave."""
    from speechfuse.evaluate import evaluate_again

    with _progress() as progress:
        metrics = evaluate_again(run, progress, beam)
    _print_metrics(metrics)


@app.command(rich_help_panel=_BEGIN)
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
        _table(*table)
    for line in [*comparing.about_systems(systems), comparing.caution(found)]:
        typer.echo(line)


@app.command(rich_help_panel=_RUNS)
def prune(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write; RUN-pruned if left out.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Points by which each task may be worse on development.")
    ] = 1.0,
    sure: Annotated[
        bool, typer.Option(help="The whole interval has to be within it, not only the value.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of training after a cut; a quarter of the run's.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=1e-6, help="Factor on the run's learning rates.")
    ] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Speed is the median of so many.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print data, fractions of one.")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Remove encoder blocks above the last one that counts, and encoders that add nothing.

    Encoders are left out in turn, the most expensive first, then blocks from the top by halving;
    each cut is trained briefly from the run's weights and judged on development data alone. The
    smallest that is good enough becomes a run of its own, compared on the test set with the run as
    it was. The same command goes on after a stop.
    """
    from speechfuse.experiments.pruning import report
    from speechfuse.experiments.pruning.run import prune_run

    with _progress() as progress:
        about = prune_run(
            run,
            out,
            tolerance=tolerance / 100,
            sure=sure,
            steps=steps,
            rate=rate,
            repeats=repeats,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for table in report.prune_tables(about):
        _table(*table)
    typer.echo(report.summary(about))
    if about["removed"]:
        typer.echo(f"run: {about['out']}")


@app.command(rich_help_panel=_BEGIN)
def predict(
    run: RunFolder,
    audio: Annotated[list[str], typer.Argument(help="Audio files, folders of them, patterns.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
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
    trust_code: TrustCode = False,
) -> None:
    """Transcribe, name the emotion, compare speakers: one line for each file and task.

    Long recordings are read in stretches that end at pauses. A file that cannot be read has a line
    that says why, and the exit code is 1 then; the others are answered.
    """
    from speechfuse.sounds import find_audio

    wrong: dict[str, str] = {}
    files = find_audio(audio, wrong)
    from speechfuse.pipeline.speech_model import SpeechModel
    from speechfuse.predict import predict_into

    model = SpeechModel(run, tasks=task)
    failed = [*wrong]
    for name, why in wrong.items():
        typer.echo(f"{name}\terror\t{why}")
    with _progress() as progress:
        lines = predict_into(
            model,
            [*files],
            model.checked(task),
            format,
            out,
            prompt=prompt,
            layers=layers,
            progress=progress if out or _on_screen() else None,
            failed=failed,
            places=files,
        )
        for line in lines:
            typer.echo(line)
    if out:
        answered = len(files) - len(failed) + len(wrong)
        typer.echo(f"{out} holds the answers to {answered} of {len(files)} recordings", err=True)
    if failed:
        raise typer.Exit(1)


@app.command(rich_help_panel=_OTHERS)
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
    with _progress() as progress:
        made = save_pretrained(
            run, folder, sources=sources, license=license, name=push, progress=progress
        )
    typer.echo(f"published in {made}; read its README.md before others do")
    if code := code_of(Run(made).recipe()):
        typer.echo(f"others need your code for {', '.join(code)}, and --trust-code")
    if push:
        typer.echo(push_to_hub(made, push, private=private))


@app.command(rich_help_panel=_OTHERS)
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

    folder = out or default_folder(run, format, int8=int8)
    with _progress() as progress:
        report = export_run(run, folder, format=format, int8=int8, progress=progress)
    rows = []
    for task, one in report["parity"]["tasks"].items():
        equal = f"{one['equal']} of {one['decisions']}" if one["decisions"] else "numbers only"
        rows.append([task, f"{one['largest']:.1e}", equal])
    _table("Package against run", ["task", "largest difference", "equal answers"], rows)
    total = sum(report["bytes"].values()) / 1e6
    typer.echo(f"{total:,.1f} MB in {folder}; python {folder / 'run.py'} clip.wav, see README.md")


@app.command(rich_help_panel=_RUNS)
def weights(
    run: RunFolder,
    picture: Annotated[Path | None, typer.Option(help="Write a picture (SVG or PNG).")] = None,
    trust_code: TrustCode = False,
) -> None:
    """How much each layer of each model counts for each task."""
    if picture and not (picture.parent.is_dir() and picture.suffix in (".svg", ".png")):
        raise SpeechFuseError(
            f"cannot draw into {picture}; name an .svg or a .png in a folder that is there"
        )
    from speechfuse.experiments.layers import draw_layer_use, run_layer_use

    with _progress() as progress:
        uses = run_layer_use(run, progress)
    for use in uses:
        fields = use.gradient or []
        named = {
            "weight": use.weights,
            "weight x size": use.scaled,
            "loss without": use.ablation,
        }
        for index, shares in enumerate(fields):
            named["gradient" + (f", position {index}" if len(fields) > 1 else "")] = shares
        rows = [[name, *(f"{v:.3f}" for v in row)] for name, row in named.items() if row]
        numbers = use.numbered(next(row for row in named.values() if row))
        _table(f"{use.task}, {use.model}", ["layer", *map(str, numbers)], rows)
    if picture:
        draw_layer_use(uses, picture)
        typer.echo(f"picture: {picture}")


@app.command(rich_help_panel=_RUNS)
def alpha(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            callback=lambda runs: [check_run(one) for one in runs],
            help="Run folders, of one recipe but seeds.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for picture and numbers.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts by task that were not trained on, a YAML file.")
    ] = None,
    utterances: Annotated[int, typer.Option(min=2, help="Of each test set looked at.")] = 240,
    trust_code: TrustCode = False,
) -> None:
    """Which layers of the prompted transformer each prompt chooses, and what makes it choose them.

    Every task's prompt is tried on the same held-out audio; then one task has the scalar, the
    prompt or both of another one. With --prompts, whether alpha follows the words of a prompt.
    """
    from speechfuse.experiments.alpha.report import alpha_tables, flags, write_alpha
    from speechfuse.experiments.alpha.run import analyse_alpha

    with _progress() as progress:
        found = analyse_alpha(runs, utterances, prompts, progress)
    for table in alpha_tables(found):
        _table(*table)
    for line in flags(found):
        typer.echo(f"warning: {line}")
    typer.echo(f"picture: {write_alpha(found, out or runs[0] / 'alpha')}")


@app.command(rich_help_panel=_BEFORE)
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
    _table(*cost_table(read, interface or (), seconds=seconds, repeats=repeats))


@app.command(rich_help_panel=_BEGIN)
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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if found.")] = None,
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


@app.command(rich_help_panel=_SPEED, cls=_Benchmarks)
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
    folder: Annotated[
        Path | None,
        typer.Option(rich_help_panel="cache", help="On the disk that is meant; a temporary one."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(callback=_there, rich_help_panel="serve", help="A run folder.")
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
        found = [*extraction.bench_extraction(seconds, repeats, shapes, device, clock)]
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
        _table(title, columns, rows)


@app.command(rich_help_panel=_BEFORE)
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
            _finding(one.status, one.about, one.found, one.remedy)
    if as_json:
        typer.echo(to_json(found))
    else:
        counts = {s: sum(one.status == s for one in found) for s in ("problem", "warning", "ok")}
        typer.echo(", ".join(f"{s}: {n}" for s, n in counts.items()))
    if any(one.status == "problem" for one in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=_BEFORE)
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
            _table(name, ["kind", "options"], rows)


def _columns(only: Sequence[str]) -> dict[str, list[str]]:
    """Values by column, of texts like part=dev-clean,test-clean."""
    columns = [text.partition("=") for text in only]
    for text, (column, _, values) in zip(only, columns, strict=True):
        if not column or not values:
            raise SpeechFuseError(f"--only {text}: expected COLUMN=VALUE, like --only language=de")
    return {column: values.split(",") for column, _, values in columns}


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


def _ask(
    recipe: Any,
    jobs: Sequence[Any],
    *,
    yes: bool,
    small: bool = True,
    limit_gb: float | None = None,
    limit_hours: float | None = None,
) -> None:
    """Print what an extraction will write and how long it takes; refuse what nobody agreed to.

    small: print it also where it is within the limits. Limits that are left out are no options.
    """
    from speechfuse.extract import extraction_table
    from speechfuse.rates import duration

    if not small and not any(job.missing for job in jobs):
        return
    gb = LIMIT_GB if limit_gb is None else limit_gb
    hours = LIMIT_HOURS if limit_hours is None else limit_hours
    table, size, seconds = extraction_table(recipe, jobs)
    past = size > gb * 1e9 or seconds > hours * 3600
    if small or past:
        _table(*table)
    if past and not yes:
        limits = f"--limit-gb {gb:g} or --limit-hours {hours:g}"
        raise SpeechFuseError(
            f"{size / 1e9:.1f} GB of layers in about {duration(seconds)}, past "
            f"{f'{gb:g} GB or {hours:g} h' if limit_gb is None else limits}; nothing was "
            "computed, add --yes to go on"
        )


def _names(text: str | None) -> list[str]:
    """Of a text with commas between them."""
    return [name for part in (text or "").split(",") if (name := part.strip())]


def _pairs(text: str | None) -> dict[str, str]:
    """Wanted by the teacher's names, of a text like hap=happy,exc=happy."""
    pairs = [pair.partition("=") for pair in _names(text)]
    for mine, _, theirs in pairs:
        if not mine or not theirs or sum(one == mine for one, *_ in pairs) > 1:
            raise SpeechFuseError(f"--map {text}: expected TEACHER=WANTED,..., each teacher once")
    return {mine: theirs for mine, _, theirs in pairs}


def _run_sweep(
    read: Any, out: Path, rows: list[str] | None, jobs: int, split: Any = "test"
) -> None:
    from speechfuse.experiments.claims import claim_tables
    from speechfuse.experiments.diagnosis import diagnose
    from speechfuse.experiments.report import pseudo_labels, result_tables, write_report
    from speechfuse.experiments.runner import run_sweep
    from speechfuse.experiments.spread import spread_tables

    with _progress() as progress:
        done = run_sweep(
            read, out, rows=rows, jobs=jobs or min(4, os.cpu_count() or 1), progress=progress
        )
    for title, columns, cells in [
        *result_tables(read, done, split),
        *spread_tables(read, done, split),
        *claim_tables(read, done, split),
    ]:
        _table(title, columns, cells)
    for line in pseudo_labels(done):
        typer.echo(line)
    found = diagnose(read, done, split)
    for line in found[-3:]:  # those of whole rows come last
        typer.echo(f"warning: {line}")
    if len(found) > 3:
        typer.echo(f"{len(found) - 3} more warnings are in the report")
    typer.echo(f"report: {write_report(read, done, out)}")


def _print_metrics(metrics: dict[str, Any]) -> None:
    from speechfuse.metrics import full_name
    from speechfuse.text import NORMALISER

    rows = [
        [
            task,
            split,
            full_name(metric),
            f"{100 * m['value']:.1f}",
            f"[{100 * m['low']:.1f}, {100 * m['high']:.1f}]",
            str(m["speakers"]),
        ]
        for split in ("dev", "test")
        for task, scores in metrics[split].items()
        for metric, m in scores.items()
    ]
    _table("", ["task", "split", "metric", "%", "95 % interval", "speakers"], rows)
    _print_thresholds(metrics.get("thresholds", {}))
    if any("wer" in scores for scores in metrics["test"].values()):
        typer.echo(f"WER and CER compare texts as {NORMALISER}")
    for task, texts in metrics.get("pseudo_labels", {}).items():
        for text in texts:
            typer.echo(f"{task}: {text}")
    for task, count in metrics["targets_longer_than_frames"].items():
        typer.echo(f"{task}: {count} training texts are longer than their frames, CTC skips them")


def _print_thresholds(found: Mapping[str, Any]) -> None:
    from speechfuse.decision import Decision

    for task, kept in found.items():
        decision = Decision.from_dict(kept)
        columns = ["on test trials", "", "95 % interval"]
        _table(f"{task}: {decision.origin()}", columns, decision.cells())


def _table(title: str, columns: list[str], rows: list[list[str]], *, left: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        justify: Any = "left" if left or index == 0 else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _finding(status: str, about: str, found: str, remedy: str) -> None:
    """One line or some, as soon as it is known; checks take seconds."""
    from rich.console import Console
    from rich.table import Table

    line = Table.grid(padding=(0, 2))
    line.add_column(
        width=7, style={"problem": "bold red", "warning": "yellow"}.get(status, "green")
    )
    line.add_column(width=18, overflow="fold")
    line.add_column(overflow="fold")
    line.add_row(status, about, found)
    if remedy:
        line.add_row("", "", f"-> {remedy}")
    Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False).print(line)


@contextmanager
def _progress(first: bool = True) -> Iterator[Callable[[str, int, int], None] | None]:
    """Bars on a terminal; elsewhere a line when something begins and when it is done.

    first: of several processes, the others say nothing.
    """
    try:
        with _shown() if first else nullcontext() as show:
            yield show
    except KeyboardInterrupt:
        if first:
            print("\nstopped, what is done is kept; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


def _on_screen() -> bool:
    return sys.stderr.isatty()


@contextmanager
def _shown() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not _on_screen():
        begun: set[str] = set()

        def say(what: str, done: int, total: int) -> None:
            if what not in begun:
                begun.add(what)
                print(f"{what} ...", file=sys.stderr, flush=True)
            if done == total:
                begun.discard(what)
                print(f"{what}: {total}", file=sys.stderr, flush=True)

        yield say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    screen = Console(stderr=True)  # lines above the bars only where both are on it
    with Progress(*columns, console=screen, redirect_stdout=sys.stdout.isatty()) as bars:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done, total=total)
            if done == total:
                known.pop(what)

        yield show


if __name__ == "__main__":
    main()
