"""What is probed: encoders, a corpus and properties, as a YAML file.

name: probing
upstreams:                             # the section of a recipe
  mel: {kind: filterbank, frame_rate: 50}
  random: {kind: huggingface, source: synthetic-whisper, weights: random}
corpus: synthetic
only: {split: [train, dev]}            # utterances with one of these values in each column
properties: [pitch, energy, characters, speaker, emotion]
folds: 5
seeds: [1, 2, 3]                       # other folds; and other weights, if they are random
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from speechfuse import build
from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.recipe import Part, Recipe, StoreRecipe, read_form


class ProbeFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str = ""
    upstreams: dict[str, Part] = Field(min_length=1)
    length_policy: Literal["masked", "equal", "padded"] = "masked"
    corpus: str
    only: dict[str, tuple[str, ...]] = {}
    # pitch, energy, characters, speaker, or a column of labels such as emotion or text
    properties: tuple[str, ...] = Field(("pitch", "energy", "speaker"), min_length=1)
    folds: int = Field(5, ge=3)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((1, 2, 3), min_length=1)
    baseline: str | None = None  # the upstream that the report compares the others with
    store: StoreRecipe = StoreRecipe()


@dataclass(frozen=True)
class Variant:
    """One encoder with its weights, and the seeds that it is probed with."""

    encoder: str
    recipe: Recipe
    seeds: tuple[int, ...]


def read_probe(path: Path, overrides: Sequence[str] = ()) -> ProbeFile:
    """Read a file; overrides are like folds=4.

    Raises:
        RecipeError: all that is wrong with it.
    """
    others = {"rows": "sweep", "tasks": "train"}
    what = "file of probes, which has upstreams, corpus and properties"
    return read_form(path, overrides, ProbeFile, others, what, _wrong)


def _wrong(probe: ProbeFile) -> Iterator[str]:
    if probe.baseline and probe.baseline not in probe.upstreams:
        hint = did_you_mean(probe.baseline, probe.upstreams)
        yield f"baseline: no upstream '{probe.baseline}'; {hint}"
    for field in ("properties", "seeds"):
        values = getattr(probe, field)
        for twice in sorted({str(v) for v in values if values.count(v) > 1}):
            yield f"{field}: '{twice}' stands twice; leave one out"
    if probe.store.reduce != "none":
        yield f"store.reduce: {probe.store.reduce}, but probes read every frame; leave it out"
    try:
        variants(probe)
    except RecipeError as error:
        yield from (line.removeprefix("recipe: ") for line in str(error).splitlines())


def variants(probe: ProbeFile) -> list[Variant]:
    """Every encoder; one of random weights, unless its seed is given, is another for each seed."""

    def recipe(name: str, part: Part) -> Recipe:
        return one_encoder(
            name,
            part,
            corpus=probe.corpus,
            length_policy=probe.length_policy,
            store=probe.store,
        )

    found = []
    for name, part in probe.upstreams.items():
        options = part.options
        if options.get("weights") == "random" and "seed" not in options:
            for seed in probe.seeds:
                drawn = Part(kind=part.kind, **options, seed=seed)
                found.append(Variant(name, recipe(name, drawn), (seed,)))
        else:
            found.append(Variant(name, recipe(name, part), probe.seeds))
    return found


def one_encoder(
    name: str, part: Part, *, corpus: str, length_policy: str, store: StoreRecipe
) -> Recipe:
    """One encoder as a recipe has it, so that options are checked and layers are stored alike.

    Its task is never trained.
    """
    data: Mapping[str, Any] = {
        "upstreams": {name: part.model_dump()},
        "length_policy": length_policy,
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {"emotion": {"corpus": corpus, "head": {"kind": "classifier"}}},
        "store": store.model_dump(),
    }
    return build.read_recipe(data)
