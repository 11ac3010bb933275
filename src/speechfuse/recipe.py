"""A recipe: one YAML file that says which parts, which tasks, which data and how to train.

Its own fields are checked here; the options of a part are checked against the part's constructor
in `catalog`. Every error is reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from speechfuse.errors import RecipeError, did_you_mean

Steps = tuple[int | str, ...]  # from the top of a recipe to one of its settings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(BaseModel):
    """One entry of a recipe: a kind, and options handed to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def without(self, option: str) -> dict[str, Any]:
        """Kind and all options but one."""
        return {name: value for name, value in self.model_dump().items() if name != option}


class FusionRecipe(_Strict):
    """How models and layers become one vector per frame."""

    order: Literal["merge_first", "layers_first"] = "merge_first"
    merge: Part = Part(kind="add")  # concat under layers_first, if left out
    interface: Part
    # Of hidden states before the merge; layer_norm if left out and the interface is gated_encoder,
    # so that its weights, and not the norms of layers, say what each adds.
    normalize: Literal["none", "layer_norm", "unit_rms"] = "none"
    allow_repeats: bool = False  # the same encoder twice: one kind with equal options
    per_task: bool = True  # one fusion for each task, as the papers train; false: one for all
    # What the first block of each encoder reads is no layer; true if left out and the interface
    # is gated_encoder, as HarmoniFuse has it. An encoder of one layer keeps it.
    drop_state_0: bool = False

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, data: Any) -> Any:
        """What is left of models after their layers is concatenated unless something is asked."""
        if not isinstance(data, Mapping):
            return data
        interface = data.get("interface")
        if isinstance(interface, Mapping) and interface.get("kind") == "gated_encoder":
            data = {"drop_state_0": True, "normalize": "layer_norm", **data}
        if data.get("order") == "layers_first":
            data = {"merge": {"kind": "concat"}, **data}
        return data


class ContextRecipe(BaseModel):
    """The prompted transformer that all tasks share; further keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = "prompted_transformer"
    interface: Part = Part(kind="prompt_adaptive")  # over its layers
    normalize: Literal["none", "layer_norm", "unit_rms"] = "layer_norm"  # of its layers first

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class SplitRecipe(_Strict):
    """Who is trained and tested on.

    Once a speaker is named, the corpus's own split does not count: speakers not named are trained
    on, or left out if train_speakers are named. With none named the corpus's own split counts;
    without one, 20 % of the speakers are the test set and 10 % of the others the development set.
    """

    train_speakers: tuple[str, ...] | None = None
    dev_speakers: tuple[str, ...] | None = None
    test_speakers: tuple[str, ...] | None = None
    all_test: bool = False  # everyone is tested; only where nothing is trained
    dev_share: float | None = Field(None, gt=0, lt=1)  # training utterances for development, if
    # it has none: of speakers who are trained on too, as SUPERB does with IEMOCAP
    learn_from: dict[str, str] = {}  # columns, and what they are in training and development sets


def _speed(speed: float) -> float:
    if not 0.5 <= speed <= 2:
        raise PydanticCustomError("speed", "expected a factor from 0.5 to 2, like 0.9 or 1.1")
    return speed


def _rising(snr: tuple[float, float]) -> tuple[float, float]:
    if not -100 <= snr[0] <= snr[1] <= 100:
        raise PydanticCustomError("rising", "expected the least and the most dB, like [5, 20]")
    return snr


Decibels = Annotated[tuple[float, float], AfterValidator(_rising)]


class NoiseRecipe(_Strict):
    """Copies of training utterances in noise, the same ones in every run."""

    source: str = "pink"  # pink, white, or a folder of recordings
    snr: Decibels = (5.0, 20.0)  # least and most, of speech over noise
    copies: int = Field(1, gt=0)  # of each utterance
    seed: int = 0  # of what is drawn; not that of training, so that stored layers serve all seeds


class AugmentRecipe(_Strict):
    """Copies of training utterances at other speeds (Ko et al. 2015) and in noise, and SpecAugment
    on what a head reads, in training (Park et al. 2019, arXiv:1904.08779).
    """

    speed: tuple[Annotated[float, AfterValidator(_speed)], ...] = ()  # a copy of each for each
    speed_speakers: Literal["same", "new"] = "same"  # a copy's voice counts as another speaker's
    noise: NoiseRecipe | None = None
    time_warp: int = Field(0, ge=0)  # frames by which one frame is moved, less than this
    time_masks: int = Field(0, ge=0)
    time_width: int = Field(0, ge=0)  # frames; each mask is narrower
    time_share: float = Field(0.0, ge=0, le=1)  # of the utterance's frames, instead of time_width
    feature_masks: int = Field(0, ge=0)
    feature_width: int = Field(0, ge=0)  # features; each mask is narrower

    @property
    def speeds(self) -> list[float]:
        """Of copies: each once; an utterance at its own speed is there already."""
        return [speed for speed in dict.fromkeys(self.speed) if speed != 1]

    @property
    def copies(self) -> int:
        """Of each training utterance."""
        return len(self.speeds) + (self.noise.copies if self.noise else 0)

    @property
    def masks(self) -> bool:
        """Whether it changes what a head reads."""
        return bool(self.time_warp or self.time_masks or self.feature_masks)


class TaskRecipe(BaseModel):
    """One task: what is asked, of which corpus, with which head; further keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str | None = None  # a task of the catalog; the entry's own name if left out
    corpus: str
    head: Part
    split: SplitRecipe = SplitRecipe()
    noise_snr: float | None = None  # dB of pink noise mixed into every utterance
    batch_seconds: float | None = Field(None, gt=0)  # the training section's, if left out
    crop_seconds: float | None = Field(None, gt=0)  # another stretch of an utterance each time
    min_seconds: float = Field(0.0, ge=0)  # shorter utterances are not learned from
    augment: AugmentRecipe | None = None  # in training
    utterance_norm: Literal["none", "mean", "mean_variance"] = "none"  # of what the head reads
    flip_labels: float = Field(0.0, ge=0, lt=1)  # share of the training set given another class
    extra_training: tuple[str, ...] = ()  # corpora that are only learned from, as pseudo-labelled
    allow_seen_by_teacher: bool = False  # test speakers on whom a teacher of labels was trained
    # With a context: positions that the head reads, speech if it needs every frame, else the last
    # one of the prompt, prefix is both parts; and prompts in words, of which training takes any, in
    # place of a learned vector.
    read: Literal["prompt", "speech", "prefix"] | None = None
    prompts: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _which_blocks(which: str) -> str:
    if not re.fullmatch(r"none|all|top_[1-9]\d*", which):
        raise PydanticCustomError(
            "which_blocks",
            "expected none, all or top_N, for example top_2 for the upper two blocks",
        )
    return which


WhichBlocks = Annotated[str, AfterValidator(_which_blocks)]


class LoraRecipe(_Strict):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), put in by peft: the extra `lora`."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0)  # what an adapter gives is multiplied by alpha / rank
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1)  # Linears of each block

    def text(self) -> str:
        return f"LoRA of rank {self.rank} and alpha {self.alpha:g} on {', '.join(self.targets)}"


class ByTemperature(_Strict):
    """Shares of the batches by the size of a task's training data to the power 1 / temperature."""

    temperature: float = Field(gt=0, allow_inf_nan=False)  # 1: proportional; the higher, the evener


class ByLoss(_Strict):
    """Shares of the batches by a task's loss relative to its first one, to this power."""

    loss_aware: float = Field(gt=0, allow_inf_nan=False)  # the higher, the more for who is behind


_SCHEDULES = ("temperature", "loss_aware")


def _schedule_form(given: Any) -> str:
    """Told by the one name in it, so that only one form's errors are reported."""
    if isinstance(given, str):
        return "name"
    fields = given.model_dump() if isinstance(given, BaseModel) else given
    names = [*fields] if isinstance(fields, Mapping) else []
    return str(names[0]) if len(names) == 1 and names[0] in _SCHEDULES else "shares"


Interleave = Annotated[
    Annotated[Literal["proportional"], Tag("name")]
    | Annotated[ByTemperature, Tag("temperature")]
    | Annotated[ByLoss, Tag("loss_aware")]
    | Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Tag("shares")],
    Discriminator(_schedule_form),
]


Turns = Literal["drawn", "even"]


class TrainingRecipe(_Strict):
    """Warm-up, then a falling or a constant rate, over batches of one task each."""

    steps: int = Field(2000, ge=0)  # of the optimiser, for all tasks together; 0: as it starts
    optimizer: Literal["adamw", "adam"] = "adamw"  # adam adds the decay to the gradient
    accumulate: int = Field(1, gt=0)  # batches whose gradients are averaged in one step
    learning_rate: float = Field(1e-3, gt=0)  # peak
    # Times the learning rate, for logits of layer weights; 10 if left out and there is a context.
    layer_rate: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, le=1)  # share of the steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after warm-up: to zero, or not
    gradient_clip: float = Field(1.0, gt=0)
    batch_seconds: float = Field(60.0, gt=0)  # audio in a batch
    batch_utterances: int | None = Field(None, gt=0)  # in a batch, of any length, instead
    # Share of each task's batches; or proportional, by the size of its training data in batches;
    # or {temperature: 5}, by that to the power 1/5; or {loss_aware: 1}, more for who is behind.
    interleave: Interleave = {}
    turns: Turns = "drawn"  # by chance, or in a fixed order with the shares in every stretch
    evaluate_every: int | None = Field(None, gt=0)  # steps; a fifth of all if left out
    log_conflict: int | None = Field(None, gt=0)  # steps between cosines of tasks' gradients
    keep: Literal["best", "last"] = "best"  # which checkpoint is the run's, best on development
    average: int = Field(1, gt=0)  # weights are the mean of so many best ones
    # Processes on each machine that train together, each on its own device with a part of every
    # batch; and machines. Left out, one alone, or as many as torchrun or srun begin.
    devices: int | None = Field(None, gt=0)
    num_nodes: int | None = Field(None, gt=0)
    strategy: Literal["ddp", "fsdp"] = "ddp"  # each keeps all weights, or a part of what is trained
    workers: int = Field(0, ge=0)  # threads that lay out as many batches ahead
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    # Blocks of each upstream that has any, or by its name: none, all (with the convolutions and
    # all else below the blocks), top_2 for the upper two. `all` is meant if only lora is given.
    train_upstream: WhichBlocks | dict[str, WhichBlocks] = "none"
    upstream_learning_rate: float = Field(1e-5, gt=0)  # peak; warm-up and schedule are shared
    lora: LoraRecipe | None = None  # only adapters in those blocks are trained

    @model_validator(mode="before")
    @classmethod
    def _adapters_everywhere(cls, given: Any) -> Any:
        if (
            isinstance(given, dict)
            and given.get("lora") is not None
            and "train_upstream" not in given
        ):
            return given | {"train_upstream": "all"}
        return given

    def blocks_of(self, upstream: str) -> str:
        """Which blocks of an upstream are to be trained: none, all or top_N."""
        asked = self.train_upstream
        return asked if isinstance(asked, str) else asked.get(upstream, "none")


class StoreRecipe(_Strict):
    """Where the frozen layers are kept."""

    folder: str = "stores"
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    budget_gb: float = Field(20.0, gt=0)
    # merged: of several encoders the one stack that the merge makes of them. mean: of every layer
    # of that, or of one encoder, the mean over time. Refused where that changes what is learned.
    reduce: Literal["none", "merged", "mean"] = "none"


def _task_name(name: str) -> str:
    """It becomes part of file names, of a model's parameter names and of lines in tables."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise PydanticCustomError(
            "task_name", "the name of a task is a letter, then letters, digits, '_' or '-'"
        )
    return name


class Recipe(_Strict):
    """Everything that decides a run; saved beside the weights it produced."""

    seed: int = Field(0, ge=0, lt=2**31)
    upstreams: dict[str, Part] = Field(min_length=1)
    length_policy: Literal["masked", "equal", "padded"] = "masked"
    fusion: FusionRecipe
    context: ContextRecipe | None = None
    tasks: dict[Annotated[str, AfterValidator(_task_name)], TaskRecipe] = Field(min_length=1)
    training: TrainingRecipe = TrainingRecipe()
    store: StoreRecipe = StoreRecipe()

    @model_validator(mode="before")
    @classmethod
    def _faster_scalars(cls, data: Any) -> Any:
        """Scalars of a layer hardly move at the rate that suits a transformer."""
        if not isinstance(data, Mapping) or data.get("context") is None:
            return data
        training = data.get("training", {})
        if not isinstance(training, Mapping):
            return data
        return {**data, "training": {"layer_rate": 10.0, **training}}


SECTIONS: Mapping[str, type[BaseModel]] = {  # of a recipe, and its top
    "": Recipe,
    "fusion": FusionRecipe,
    "training": TrainingRecipe,
    "store": StoreRecipe,
}


def load_recipe(
    source: Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    check: Callable[[Mapping[str, Any]], list[str]] | None = None,
    *,
    expand: bool = True,
    elsewhere: Callable[[Mapping[str, Any], str], Sequence[str]] = lambda data, name: (),
) -> Recipe:
    """Read a recipe from a file or a mapping and apply overrides like `training.steps=100`.

    `${NAME}` in a text stands for an environment variable, unless `expand` is false: another
    person's recipe could send what is in them to the hub. check: finds what else is wrong.
    elsewhere: settings of a name, for one that stands where it is unknown.

    Raises:
        RecipeError: all that is wrong with it, one line each.
    """
    name = str(source) if isinstance(source, Path) else "recipe"
    data = read_yaml(source) if isinstance(source, Path) else _copy(source)
    if "recipe" in data:
        raise RecipeError(f"{name}: is a sweep, of many runs; run it with: speechfuse sweep {name}")
    for override in overrides:
        apply_override(data, override)
    wrong: list[str] = []
    data = expanded(data, wrong) if expand else data
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        wrong += explain(error, elsewhere=partial(elsewhere, data))
    else:
        if isinstance(recipe.training.interleave, dict):
            wrong += _wrong_shares(recipe.training.interleave, recipe.tasks)
        if recipe.training.turns == "even" and isinstance(recipe.training.interleave, ByLoss):
            wrong.append(
                "training.turns: 'even' has an order that no loss changes; leave it out, or give "
                "fixed shares as training.interleave"
            )
        if recipe.training.average > 1 and recipe.training.keep == "last":
            wrong.append("training.average: keep is 'last', so there is one; use keep: best")
        wrong += _wrong_tuning(recipe)
    wrong += check(data) if check else []
    if wrong:
        raise RecipeError("\n".join(f"{name}: {line}" for line in wrong))
    return recipe


def code_of(recipe: Recipe) -> list[str]:
    """Parts in files of their own, as `module:Name`: no part of the library, nor published."""
    fusion, context = recipe.fusion, recipe.context
    kinds = [one.kind for one in (*recipe.upstreams.values(), fusion.merge, fusion.interface)]
    kinds += [context.kind, context.interface.kind] if context else []
    for name, entry in recipe.tasks.items():
        kinds += [entry.kind or name, entry.head.kind]
    return sorted({kind for kind in kinds if ":" in kind})


def _wrong_shares(shares: Mapping[str, float], tasks: Iterable[str]) -> list[str]:
    """Shares of tasks that are not there, tasks without a share, or nothing to train."""
    wrong = []
    for extra in sorted(set(shares) - set(tasks)):
        hint = did_you_mean(extra, tasks)
        if extra in _SCHEDULES:
            hint = f"the schedule {{{extra}: {shares[extra]:g}}} stands alone, without shares"
        elif len(shares) == 1:
            hint = did_you_mean(extra, [*tasks, *_SCHEDULES])
        wrong.append(f"training.interleave.{extra}: no such task; {hint}")
    left_out = sorted(set(tasks) - set(shares)) if shares else ()
    wrong += [f"training.interleave.{t}: is missing; give its share, or 0" for t in left_out]
    if shares and not any(shares.values()):
        wrong.append("training.interleave: all shares are 0; nothing would be trained")
    return wrong


def _wrong_tuning(recipe: Recipe) -> list[str]:
    """What is asked of upstreams that are not there, or of adapters that are put nowhere."""
    training, asked = recipe.training, recipe.training.train_upstream
    wrong = []
    for extra in sorted(set(asked) - set(recipe.upstreams)) if isinstance(asked, dict) else ():
        hint = did_you_mean(extra, recipe.upstreams)
        wrong.append(f"training.train_upstream.{extra}: no such upstream; {hint}")
    if training.lora and all(training.blocks_of(name) == "none" for name in recipe.upstreams):
        wrong.append("training.lora: train_upstream is none, so there are no adapters; use all")
    return wrong


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, through the safe loader.

    Raises:
        RecipeError: no such file, not YAML, a key twice in one section, or not a mapping.
    """
    try:
        data = yaml.load(path.read_text(), _OnceLoader)  # noqa: S506 - it is a safe loader
    except FileNotFoundError as error:
        raise RecipeError(
            f"no recipe at {path}; check the path, or begin with a copy of a run's RUN/recipe.yaml"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise RecipeError(f"{path} holds {found}, expected a mapping of sections")
    return data


class _OnceLoader(yaml.SafeLoader):
    """YAML would let the second of two tasks of one name replace the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key.value}' stands twice in one section",
                    problem_mark=key.start_mark,
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one value in place: `a.b.c=value`, the value read as YAML.

    Raises:
        RecipeError: not KEY=VALUE, a value that is not YAML, or a key that leads through something
            that is no section.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override '{override}' is not KEY=VALUE, for example training.steps=100")
    *path, last = key.split(".")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"override '{override}': the value '{value}' is not YAML; look for a bracket or a "
            "quote that is not closed"
        ) from error
    node: Any = data
    for step in path:
        node = _child(node, step, override)
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = read
    elif isinstance(node, dict):
        node[last] = read
    else:
        raise RecipeError(f"override '{override}': there is no section above '{last}'")


def _child(node: Any, step: str, override: str) -> Any:
    if isinstance(node, list) and step.isdigit() and int(step) < len(node):
        return node[int(step)]
    if isinstance(node, dict):
        if node.get(step) is None:
            node[step] = {}
        return node[step]
    raise RecipeError(f"override '{override}': '{step}' is not inside a section")


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, section by section.

    A part of another kind replaces, and so does another form of schedule.
    """
    result = _copy(base)
    for key, value in change.items():
        old = result.get(key)
        other = key == "interleave" and _schedule_form(old) != _schedule_form(value)
        if isinstance(old, dict) and isinstance(value, Mapping) and not ("kind" in value or other):
            result[key] = merged(old, value)
        else:
            result[key] = _copy(value) if isinstance(value, Mapping) else value
    return result


def explain(
    error: ValidationError,
    top: type[BaseModel] = Recipe,
    unknown: str = "unknown setting",
    elsewhere: Callable[[str], Sequence[str]] = lambda name: (),
) -> list[str]:
    """One line for each thing pydantic found wrong, with the nearest known name.

    top: the model that was validated. unknown: what to call a name that it does not have.
    elsewhere: settings of that name in other places.
    """
    lines = []
    for path, found in groupby(error.errors(), lambda item: _setting(item["loc"], top)):
        item, *others = found  # others: what else a setting of several types could have been
        where = ".".join(str(step) for step in path if step != "[key]")
        if item["type"] == "extra_forbidden":
            known = getattr(_type_at(path[:-1], top), "model_fields", ())
            name = str(path[-1])
            lines.append(f"{where}: {unknown}; {did_you_mean(name, known, elsewhere(name))}")
        elif item["type"] == "missing":
            lines.append(f"{where}: is missing")
        elif item["type"] in ("model_type", "dict_type"):
            lines.append(f"{where}: expected a mapping of settings (found {item['input']!r})")
        else:
            wanted = [item["msg"], *(o["msg"].removeprefix("Input should be ") for o in others)]
            lines.append(f"{where}: {', or '.join(wanted)} (found {item['input']!r})")
    return lines


def _setting(path: Steps, top: type[BaseModel]) -> Steps:
    """The path without pydantic's name for the type that it tried, of several.

    What lies below it is named where the type was chosen by its form, a discriminator.
    """
    for size in range(1, len(path)):
        found = _type_at(path[:size], top)
        if get_origin(found) in (Union, UnionType):
            marks = getattr(get_args(found)[0], "__metadata__", ())
            tagged = any(isinstance(mark, Tag) for mark in marks)
            return path[:size] + path[size + 1 :] if tagged else path[:size]
    return path


def _type_at(path: Steps, top: type[BaseModel]) -> Any:
    """The type of a setting or a section; of one that may be left out, what it is if it is not."""
    found: Any = top
    for step in path:
        if get_origin(found) is dict:
            found = get_args(found)[1]
        else:
            field = getattr(found, "model_fields", {}).get(step)
            found = field and field.annotation
        given = [one for one in get_args(found) if one is not NoneType]
        if get_origin(found) in (Union, UnionType) and len(given) == 1:
            found = given[0]
    return found


Form = TypeVar("Form", bound=BaseModel)


def read_form(
    path: Path,
    overrides: Sequence[str],
    form: type[Form],
    others: Mapping[str, str],
    what: str,
    check: Callable[[Form], Iterable[str]],
) -> Form:
    """A file that is no recipe, with overrides and environment variables; all errors at once.

    others: sections of other files, and the command that runs those. what: this one is, and has.
    check: finds what else is wrong.

    Raises:
        RecipeError: all that is wrong with it, or it is another file.
    """
    data = read_yaml(path)
    for override in overrides:
        apply_override(data, override)
    for section, command in others.items():
        if section in data:
            raise RecipeError(f"{path}: is no {what}; run it with: speechfuse {command} {path}")
    wrong: list[str] = []
    try:
        read = form.model_validate(expanded(data, wrong))
        wrong += check(read)
    except ValidationError as error:
        wrong += explain(error, form)
    if wrong:
        raise RecipeError("\n".join(f"{path}: {line}" for line in wrong))
    return read


def expanded(value: Any, wrong: list[str]) -> Any:
    """Environment variables in texts, at any depth; those that are not set go to `wrong`."""
    if isinstance(value, Mapping):
        return {key: expanded(inner, wrong) for key, inner in value.items()}
    if isinstance(value, list):
        return [expanded(inner, wrong) for inner in value]
    if isinstance(value, str):
        for variable in re.findall(r"\$\{(\w+)\}", value):
            found = os.environ.get(variable)
            if found is None:
                wrong.append(f"'{value}' needs the environment variable {variable}; export it")
            value = value.replace(f"${{{variable}}}", found or "")
    return value


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}
