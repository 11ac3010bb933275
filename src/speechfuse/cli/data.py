"""Commands for data: prepare, audit, pseudo-label."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from speechfuse.cli.shared import DATA, TrustCode, app
from speechfuse.cli.terminal import print_table, shown_progress
from speechfuse.errors import SpeechFuseError


@app.command(rich_help_panel=DATA)
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
        "language": names_in(language) or None,
        "max_hours": max_hours,
        "min_dnsmos": min_dnsmos,
    }
    with shown_progress() as progress:
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


@app.command(rich_help_panel=DATA)
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

    with shown_progress() as progress:
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
            print_table(*findings, left=True)
        for table in labels:
            print_table(*table)
        if not found.findings:
            typer.echo(f"{findings[0]}: nothing found")
    if found.serious:
        raise typer.Exit(1)


@app.command(rich_help_panel=DATA)
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
    with shown_progress() as progress:
        summary = pseudo_label(
            corpus,
            find_teacher(teacher, task, revision),
            out,
            labels=names_in(labels) or None,
            mapping=_pairs(renamed),
            threshold=threshold,
            balance=int(balance) if balance.isdigit() else balance,  # type: ignore[arg-type]
            only=_columns(only or ()),
            seen=names_in(seen),
            progress=progress,
        )
    classes = summary["classes"]
    columns = ["class", *next(iter(classes.values()))]
    rows = [[name, *(f"{n:,}" for n in counts.values())] for name, counts in classes.items()]
    print_table("", columns, rows)
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


def _columns(only: Sequence[str]) -> dict[str, list[str]]:
    """Values by column, of texts like part=dev-clean,test-clean."""
    columns = [text.partition("=") for text in only]
    for text, (column, _, values) in zip(only, columns, strict=True):
        if not column or not values:
            raise SpeechFuseError(f"--only {text}: expected COLUMN=VALUE, like --only language=de")
    return {column: values.split(",") for column, _, values in columns}


def names_in(text: str | None) -> list[str]:
    """Of a text with commas between them."""
    return [name for part in (text or "").split(",") if (name := part.strip())]


def _pairs(text: str | None) -> dict[str, str]:
    """Wanted by the teacher's names, of a text like hap=happy,exc=happy."""
    pairs = [pair.partition("=") for pair in names_in(text)]
    for mine, _, theirs in pairs:
        if not mine or not theirs or sum(one == mine for one, *_ in pairs) > 1:
            raise SpeechFuseError(f"--map {text}: expected TEACHER=WANTED,..., each teacher once")
    return {mine: theirs for mine, _, theirs in pairs}
