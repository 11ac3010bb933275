"""Prune a finished run: try cuts on development data, keep the smallest, compare on the test set.

RUN-pruned         an ordinary run, and prune.json
RUN-pruned.tried   runs of what was tried, until something is chosen
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechfuse.checkpoint import Run
from speechfuse.errors import RunError
from speechfuse.evaluate import SCORED, SPLITS, evaluate_again, evaluate_run, open_run
from speechfuse.experiments.pruning.cuts import (
    Cut,
    Encoder,
    cut_recipe,
    encoders_of,
    reads_one,
    single_layers,
    whole,
)
from speechfuse.experiments.pruning.record import compared, costs, known_about, told, write_about
from speechfuse.experiments.pruning.search import search
from speechfuse.experiments.pruning.speed import encoder_speeds
from speechfuse.experiments.pruning.trial import Bench, Rule, Trial
from speechfuse.extract import Before, extraction_jobs
from speechfuse.recipe import Recipe
from speechfuse.runs import training_of
from speechfuse.taskdata import load_tasks
from speechfuse.types import Progress, Utterance

_KEPT = ("model.safetensors", "tasks.json", "data.json", "seen.json")  # all else is written anew


def prune_run(
    folder: Path,
    out: Path | None = None,
    *,
    tolerance: float = 0.01,
    sure: bool = False,
    steps: int | None = None,
    rate: float = 1.0,
    repeats: int = 5,
    progress: Progress | None = None,
    before: Before | None = None,
) -> dict[str, Any]:
    """Write a smaller run if there is one, and return what is in its prune.json.

    Every cut is tried trained and as it is; the better one counts, of equals the trained one.

    tolerance: by which the primary metric of every task may be worse on development data, in
    shares of one. sure: its whole interval, too. steps: of training after a cut, a quarter of the
    run's if None. rate: times the run's learning rates. repeats: of measuring speed.
    before: called with what is to be extracted, and may refuse it.

    Raises:
        RunError: no finished run there, or `out` holds something else.
        SpeechFuseError: its corpora or encoders are not here, or have changed.
        KeyboardInterrupt: what is done is kept, the same call goes on.
    """
    run = Run(folder)
    recipe = run.recipe()
    if not run.finished:
        raise RunError(f"{folder} is not finished; train it first: {training_of(folder)}")
    named = folder if folder.name not in ("", "..") else folder.resolve()
    out = out or named.with_name(f"{named.name}-pruned")
    work = out.with_name(f"{out.name}.tried")
    bench = Bench(run, work, steps or max(1, recipe.training.steps // 4), rate)
    rule = Rule(tolerance, sure)
    settings = {"weights": bench.mark, **asdict(rule), "steps": bench.steps, "rate": rate}
    if known := known_about(out, work, settings):
        return known
    encoders = encoders_of(recipe)
    start, about = whole(encoders), {"run": str(folder), **settings, "tried": []}
    if reads_one(recipe):
        start = single_layers(recipe, encoders)
    if start == whole(encoders) and not _can_try(start, encoders):
        encoder = next(iter(encoders.values()))
        return about | {"removed": False, "why": _why_nothing(encoder)}
    clips = _checked(run, recipe, progress, before)
    tried: list[tuple[Trial, bool | None]] = []

    def attempt(cut: Cut) -> Trial:
        if not tried:  # what the training alone changes
            about["cautions"] = bench.cautions(tolerance)
            for line in about["cautions"]:
                logging.getLogger(__name__).warning("warning: %s", line)
            tried.append((bench.tried(whole(encoders), encoders, _named(progress, "all")), None))
        shown = _named(progress, cut.text(encoders))
        trials = [bench.tried(cut, encoders, shown, steps=steps) for steps in (None, 0)]
        trial = min(trials, key=lambda one: rule.worst(one.losses))
        tried.append((trial, rule.keeps(trial.losses)))
        return trial

    exact = None if start == whole(encoders) else _copied(bench, start, progress)
    found = search(start, encoders, rule, attempt)
    about["tried"] = [told(bench, encoders, *one) for one in tried]
    chosen = found.chosen or exact
    if chosen is None:
        limit = f"{100 * tolerance:g} points{', interval included,' if sure else ''}"
        why = f"no cut that was tried keeps every task within {limit} on development data; what was"
        why += f" tried is kept in {work} for another --tolerance"
        return write_about(work, about | {"removed": False, "why": why})
    after = Run(chosen.folder)
    evaluate_again(after.folder, progress)
    about |= {"removed": True, "exact": found.chosen is None, "out": str(out)}
    about |= costs(run, after, encoders, found.cut)
    about["speed"] = encoder_speeds(recipe, after.recipe(), clips, repeats)
    about["test"] = compared(run, after)
    if found.chosen is not None and found.chosen.steps:  # what is the cut's, what the training's
        control = Run(tried[0][0].folder)
        evaluate_again(control.folder, progress)
        about["trained_as_long"] = compared(control, after)
    about = write_about(after.folder, about)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        out.rmdir()  # it is empty
    after.folder.rename(out)
    shutil.rmtree(work)
    return about


def _can_try(start: Cut, encoders: Mapping[str, Encoder]) -> bool:
    """Whether there is an encoder to leave out, or a block to stop before."""
    stops = (one.can_stop and one.fewest < len(start.layers[one.name]) for one in encoders.values())
    return len(encoders) > 1 or any(stops)


def _why_nothing(encoder: Encoder) -> str:
    if len(encoder.layers) == 1:
        return f"encoder '{encoder.name}' is alone and has one layer"
    return (
        f"encoder '{encoder.name}' is alone and cannot stop lower: it has no option `layers`, or "
        "its upper blocks are those that are trained"
    )


def _checked(
    run: Run, recipe: Recipe, progress: Progress | None, before: Before | None
) -> Sequence[Utterance]:
    """Everything that the run was made of is here and as it was; its development utterances."""
    run.check(recipe)
    tasks = load_tasks(recipe, run.tasks(), progress)
    run.check_data({name: data.marks() for name, data in tasks.items()})
    for split in SPLITS:
        for name in tasks:
            run.table(split, name)
    if before:
        before(recipe, extraction_jobs(recipe, tasks))
    return next(iter(tasks.values())).splits["dev"]


def _copied(bench: Bench, cut: Cut, progress: Progress | None) -> Trial:
    """The run with encoders that end at the one layer that is read: the same weights."""
    recipe = cut_recipe(bench.recipe, cut)
    folder = bench.place(recipe)
    if not Run(folder).finished:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in _KEPT:
            if (kept := bench.run.folder / name).is_file():
                shutil.copyfile(kept, folder / name)
        begun = Run(folder)
        begun.begin(recipe)
        begun.end()
        run, model, tasks, inputs = open_run(folder, progress)
        metrics = bench.run.metrics()
        about = {k: v for k, v in metrics.items() if k not in SCORED}
        evaluate_run(run, model=model, tasks=tasks, inputs=inputs, about=about, splits=["dev"])
    return bench.trial(cut, folder)


def _named(progress: Progress | None, cut: str) -> Progress | None:
    """Training steps under the name of the cut; everything else as it is."""
    if progress is None:
        return None

    def say(what: str, done: int, total: int) -> None:
        progress(cut if what == "training steps" else what, done, total)

    return say
