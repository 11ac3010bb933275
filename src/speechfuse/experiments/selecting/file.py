"""What is chosen from: candidate encoders and tasks with a labelled sample, as a YAML file.

name: selection
upstreams:                             # the section of a recipe
  self-supervised: {kind: huggingface, source: synthetic-hubert}
  supervised: {kind: huggingface, source: synthetic-whisper, whisper_pad: 1}
tasks:                                 # as in a recipe; heads and training are not needed
  emotion: {corpus: synthetic}
limits: {utterances: 400}              # of each task

The test split of a corpus is never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechfuse import build
from speechfuse.contracts import Task
from speechfuse.errors import RecipeError
from speechfuse.experiments.probing.file import Variant, one_encoder
from speechfuse.recipe import Part, StoreRecipe, TaskRecipe, explain, read_form


class Limits(BaseModel):
    """What keeps it short."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    utterances: int = Field(400, ge=20)  # of each task, drawn evenly from its speakers
    layers: int = Field(2, ge=1)  # best ones of each encoder that pairs are made of


class SelectFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str = ""
    upstreams: dict[str, Part] = Field(min_length=1)
    length_policy: Literal["masked", "equal", "padded"] = "masked"
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    limits: Limits = Limits()
    folds: int = Field(5, ge=3)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((1,), min_length=1)
    store: StoreRecipe = StoreRecipe()

    def entry(self, name: str) -> TaskRecipe:
        """A task as a recipe has it; its head is never built."""
        return TaskRecipe.model_validate({"head": {"kind": "none"}, **self.tasks[name]})


def read_selection(path: Path, overrides: Sequence[str] = ()) -> SelectFile:
    """Read a file; overrides are like limits.utterances=200.

    Raises:
        RecipeError: all that is wrong with it.
    """
    others = {"rows": "sweep", "properties": "probe"}
    what = "selection, which has upstreams and tasks"
    return read_form(path, overrides, SelectFile, others, what, _wrong)


def _wrong(selection: SelectFile) -> Iterator[str]:
    for name in selection.tasks:
        try:
            task = build.build_task(name, selection.entry(name))
        except ValidationError as error:
            yield from (f"tasks.{name}.{line}" for line in explain(error, TaskRecipe))
        except RecipeError as error:
            yield from (f"tasks.{name}: {line}" for line in str(error).splitlines())
        else:
            if not probed_by(task):
                yield (
                    f"tasks.{name}: there is no probe for it; there are for the column text (asr), "
                    "one class for each utterance (emotion, classification) and verification"
                )
    try:
        candidates(selection)
    except RecipeError as error:
        yield from (line.removeprefix("recipe: ") for line in str(error).splitlines())


def probed_by(task: Task) -> str | None:
    """What a task's probe looks for: verification, characters or a column of classes."""
    if task.reads == "vector":
        return "verification"
    if len(task.needs) != 1:
        return None
    (column,) = task.needs
    if task.reads == "class" or column == "language":
        return column
    return "characters" if column == "text" else None


def candidates(selection: SelectFile) -> list[Variant]:
    """Every encoder; random weights without a seed have the first one."""
    found = []
    for name, part in selection.upstreams.items():
        options: Mapping[str, Any] = part.options
        if options.get("weights") == "random":
            options = {"seed": selection.seeds[0], **options}
        recipe = one_encoder(
            name,
            Part(kind=part.kind, **options),
            corpus=next(iter(selection.tasks.values())).get("corpus", ""),
            length_policy=selection.length_policy,
            store=selection.store,
        )
        found.append(Variant(name, recipe, selection.seeds))
    return found
