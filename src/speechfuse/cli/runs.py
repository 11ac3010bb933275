"""Commands for runs: sweep, evaluate, prune, weights, alpha."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from speechfuse.cli.before import asking
from speechfuse.cli.shared import RUNS, Jobs, RunFolder, TrustCode, Yes, app
from speechfuse.cli.terminal import print_table, shown_progress
from speechfuse.errors import SpeechFuseError
from speechfuse.runs import check_run


@app.command(rich_help_panel=RUNS)
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep: rows, conditions, folds and seeds.")],
    out: Annotated[Path | None, typer.Option(help="Folder for runs, table and report.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be repeated.")] = None,
    split: Annotated[
        Literal["test", "dev"], typer.Option(help="Print scores of this split.")
    ] = "test",
    jobs: Jobs = 1,
    yes: Yes = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, like recipe.training.steps=100.")
    ] = None,
) -> None:
    """Run every row of a sweep and print its table; finished runs are not repeated."""
    from speechfuse.experiments.sweep import read_sweep

    read = read_sweep(file, overrides or ())
    folder = out or Path("runs") / read.name
    run_and_report(read, folder, row, jobs, split, before=asking(yes))


@app.command(rich_help_panel=RUNS)
def evaluate(
    run: RunFolder,
    beam: Annotated[
        int | None,
        typer.Option(min=1, help="Texts kept while one is searched; prints, and changes no file."),
    ] = None,
    yes: Yes = False,
    trust_code: TrustCode = False,
) -> None:
    """Score a run again from its weights; the numbers are those that training gave."""
    from speechfuse.evaluate import evaluate_again

    with shown_progress() as progress:
        metrics = evaluate_again(run, progress, beam, asking(yes))
    print_metrics(metrics)


@app.command(rich_help_panel=RUNS)
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
    yes: Yes = False,
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

    with shown_progress() as progress:
        about = prune_run(
            run,
            out,
            tolerance=tolerance / 100,
            sure=sure,
            steps=steps,
            rate=rate,
            repeats=repeats,
            progress=progress,
            before=asking(yes),
        )
    if as_json:
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for table in report.prune_tables(about):
        print_table(*table)
    typer.echo(report.summary(about))
    for line in about.get("cautions", ()):  # none of a run that was pruned before there were any
        typer.echo(f"warning: {line}")
    if about["removed"]:
        typer.echo(f"run: {about['out']}")


@app.command(rich_help_panel=RUNS)
def weights(
    run: RunFolder,
    picture: Annotated[Path | None, typer.Option(help="Write a picture (SVG or PNG).")] = None,
    yes: Yes = False,
    trust_code: TrustCode = False,
) -> None:
    """How much each layer of each model counts for each task."""
    if picture and not (picture.parent.is_dir() and picture.suffix in (".svg", ".png")):
        raise SpeechFuseError(
            f"cannot draw into {picture}; name an .svg or a .png in a folder that is there"
        )
    from speechfuse.experiments.layers import draw_layer_use, layer_tables, run_layer_use

    with shown_progress() as progress:
        uses = run_layer_use(run, progress, asking(yes))
    for table in layer_tables(uses):
        print_table(*table)
    if picture:
        draw_layer_use(uses, picture)
        typer.echo(f"picture: {picture}")


@app.command(rich_help_panel=RUNS)
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
    yes: Yes = False,
    trust_code: TrustCode = False,
) -> None:
    """Which layers of the prompted transformer each prompt chooses, and what makes it choose them.

    Every task's prompt is tried on the same held-out audio; then one task has the scalar, the
    prompt or both of another one. With --prompts, whether alpha follows the words of a prompt.
    """
    from speechfuse.experiments.alpha.report import alpha_tables, flags, write_alpha
    from speechfuse.experiments.alpha.run import analyse_alpha

    with shown_progress() as progress:
        found = analyse_alpha(runs, utterances, prompts, progress, asking(yes))
    for table in alpha_tables(found):
        print_table(*table)
    for line in flags(found):
        typer.echo(f"warning: {line}")
    typer.echo(f"picture: {write_alpha(found, out or runs[0] / 'alpha')}")


def run_and_report(
    read: Any,
    out: Path,
    rows: list[str] | None,
    jobs: int,
    split: Any = "test",
    before: Any = None,
) -> None:
    """Run a sweep, print its tables, claims and worst warnings, write its report.

    before: called with what is to be extracted, and may refuse it.
    """
    from speechfuse.experiments.claims import claim_tables
    from speechfuse.experiments.diagnosis import diagnose
    from speechfuse.experiments.report import pseudo_labels, result_tables, write_report
    from speechfuse.experiments.runner import run_sweep
    from speechfuse.experiments.spread import spread_tables

    with shown_progress() as progress:
        done = run_sweep(
            read,
            out,
            rows=rows,
            jobs=jobs or min(4, os.cpu_count() or 1),
            progress=progress,
            before=before,
        )
    for title, columns, cells in [
        *result_tables(read, done, split),
        *spread_tables(read, done, split),
        *claim_tables(read, done, split),
    ]:
        print_table(title, columns, cells)
    for line in pseudo_labels(done):
        typer.echo(line)
    found = diagnose(read, done, split)
    for failure in found[-3:]:  # those of whole rows come last
        typer.echo(f"warning: {failure.line}")
    if len(found) > 3:
        typer.echo(f"{len(found) - 3} more warnings are in the report")
    typer.echo(f"report: {write_report(read, done, out)}")


def print_metrics(metrics: dict[str, Any]) -> None:
    """A run's scores, thresholds and what was left out."""
    from speechfuse.metrics import bracket, full_name
    from speechfuse.text import NORMALISER
    from speechfuse.types import Metric

    rows = [
        [
            task,
            split,
            full_name(metric),
            f"{100 * m['value']:.1f}",
            bracket(Metric(**m)),
            str(m["speakers"]),
        ]
        for split in ("dev", "test")
        for task, scores in metrics[split].items()
        for metric, m in scores.items()
    ]
    print_table("", ["task", "split", "metric", "%", "95 % interval", "speakers"], rows)
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
        print_table(f"{task}: {decision.origin()}", columns, decision.cells())
