"""Short names for the parts that ship with the library; the only file that imports all of them.

A recipe may instead say `kind: my_module:MyPart` for a class in a file of the user's own, found
in the current folder or installed; then nothing here needs to change. What a run folder names so
is not imported unless the user says so, for it may be of somebody else.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.contracts import Context, Head, Interface, Merge, Task, Upstream
from speechfuse.errors import RecipeError, did_you_mean
from speechfuse.heads.classifier import Classifier
from speechfuse.heads.conv_transformer import ConvTransformer
from speechfuse.heads.ctc import CTC
from speechfuse.heads.diarization import Diarization as DiarizationHead
from speechfuse.heads.slots import Slots
from speechfuse.heads.speaker import Speaker
from speechfuse.heads.statistics import Statistics
from speechfuse.heads.text import Text
from speechfuse.heads.x_vector import XVector
from speechfuse.interfaces.cls_pooling import ClsPooling
from speechfuse.interfaces.concat_project import ConcatProject
from speechfuse.interfaces.frame_gating import FrameGating
from speechfuse.interfaces.gated_encoder import GatedEncoder
from speechfuse.interfaces.grouped_weighted_sum import GroupedWeightedSum
from speechfuse.interfaces.gumbel_selection import GumbelSelection
from speechfuse.interfaces.hconv import HConv
from speechfuse.interfaces.layer_cross_attention import LayerCrossAttention
from speechfuse.interfaces.mhfa import MHFA
from speechfuse.interfaces.pca_concat import PCAConcat
from speechfuse.interfaces.prompt_adaptive import PromptAdaptiveFusion
from speechfuse.interfaces.single_layer import SingleLayer
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.merging.add import Add
from speechfuse.merging.concat import Concat
from speechfuse.merging.gated import Gated
from speechfuse.merging.interleave import Interleave
from speechfuse.ops import file_hash
from speechfuse.recipe import explain
from speechfuse.tasks.classification import Classification
from speechfuse.tasks.diarization import Diarization
from speechfuse.tasks.intent import Intent
from speechfuse.tasks.language import LanguageToken
from speechfuse.tasks.phones import Phones
from speechfuse.tasks.recognition import Recognition
from speechfuse.tasks.verification import Verification
from speechfuse.upstreams.filterbank import Filterbank
from speechfuse.upstreams.huggingface import HuggingFace

Table = Mapping[str, type[Any]]

UPSTREAMS: Table = {"huggingface": HuggingFace, "filterbank": Filterbank}
MERGES: Table = {"add": Add, "concat": Concat, "gated": Gated, "interleave": Interleave}
INTERFACES: Table = {
    "single_layer": SingleLayer,
    "weighted_sum": WeightedSum,
    "grouped_weighted_sum": GroupedWeightedSum,
    "concat_project": ConcatProject,
    "pca_concat": PCAConcat,
    "gumbel_selection": GumbelSelection,
    "frame_gating": FrameGating,
    "cls_pooling": ClsPooling,
    "layer_cross_attention": LayerCrossAttention,
    "mhfa": MHFA,
    "hconv": HConv,
    "gated_encoder": GatedEncoder,
    "prompt_adaptive": PromptAdaptiveFusion,
}
CONTEXTS: Table = {"prompted_transformer": PromptedTransformer}
HEADS: Table = {
    "ctc": CTC,
    "conv_transformer": ConvTransformer,
    "classifier": Classifier,
    "slots": Slots,
    "speaker": Speaker,
    "x_vector": XVector,
    "statistics": Statistics,
    "diarization": DiarizationHead,
    "text": Text,
}
TASKS: Table = {
    "asr": Recognition,
    "phones": Phones,
    "emotion": Classification,
    "classification": Classification,
    "intent": Intent,
    "language": LanguageToken,
    "verification": Verification,
    "diarization": Diarization,
}
ROLES: Mapping[str, Table] = {
    "upstream": UPSTREAMS,
    "merge": MERGES,
    "interface": INTERFACES,
    "context": CONTEXTS,
    "head": HEADS,
    "task": TASKS,
}
CONTRACTS: Mapping[str, type[Any]] = {
    "upstream": Upstream,
    "merge": Merge,
    "interface": Interface,
    "context": Context,
    "head": Head,
    "task": Task,
}
# What the library fills in itself: a recipe cannot set it.
FILLED_IN = (
    *("tasks", "out_dim", "num_classes", "slot_sizes", "num_tokens", "symbols", "longest"),
    *("text_sizes", "prompts", "loss_weights"),
)


# Within `of_others`, the only code in files of their own that may be imported; None: all.
_OWN: ContextVar[Collection[str] | None] = ContextVar("own", default=None)
_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusted_code(trust: bool = True) -> Iterator[None]:
    """Within, parts that run folders name as `module:Name` are imported, as --trust-code does."""
    before = _TRUSTED.set(trust or _TRUSTED.get())
    try:
        yield
    finally:
        _TRUSTED.reset(before)


@contextmanager
def of_others(own: Collection[str] = ()) -> Iterator[None]:
    """Within, a recipe is read that somebody else may have written. own: parts trusted anyway."""
    before = _OWN.set(own)
    try:
        yield
    finally:
        _OWN.reset(before)


def find(role: str, kind: str) -> type[Any]:
    """The class that a recipe means by `kind`.

    Raises:
        RecipeError: no such name, the named module or class cannot be imported or is not to be
            trusted, or it does not play the role.
    """
    table = ROLES[role]
    if kind in table:
        return table[kind]
    if ":" not in kind:
        raise RecipeError(f"unknown {role} kind '{kind}'; {did_you_mean(kind, table)}")
    module, _, name = kind.partition(":")
    own = _OWN.get()
    if own is not None and kind not in own and not _TRUSTED.get():
        raise RecipeError(
            f"{role} kind '{kind}' is code in a file of its own, which is not run because a run "
            f"folder names it; look at {module}, and if you trust it add --trust-code (in Python "
            "trust_code=True)"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's file raises
        what = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{role} kind '{kind}' cannot be imported: {what}") from error
    contract = CONTRACTS[role]
    if not (isinstance(found, type) and issubclass(found, contract)):
        raise RecipeError(f"{role} kind '{kind}' is no subclass of {_full(contract)}; make it one")
    if inspect.isabstract(found):
        lacks = ", ".join(sorted(found.__abstractmethods__))
        raise RecipeError(f"{role} kind '{kind}' lacks {lacks}; see {_full(contract)}")
    return found


def own_code(role: str, kind: str) -> dict[str, str]:
    """The hash of the file that defines a part of the user's own; of ours nothing.

    Of that file alone, and not of what it imports.

    Raises:
        RecipeError: as `find`, or the class stands in no file.
    """
    if kind in ROLES[role]:
        return {}
    return {"code": _file_hash(find(role, kind))}  # type: ignore[arg-type]  # a class can be hashed


@cache
def _file_hash(cls: type[Any]) -> str:
    """As it is when this is first asked: an edit after that has not been imported."""
    try:
        return file_hash([Path(inspect.getfile(cls))])
    except (TypeError, OSError) as error:
        raise RecipeError(
            f"{_full(cls)} stands in no file that can be read ({error}), so that a store could not "
            "tell when it changes; put it in a file of its own"
        ) from error


def _full(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def checked_options(
    role: str,
    kind: str,
    options: Mapping[str, Any],
    elsewhere: Callable[[str], Sequence[str]] = lambda name: (),
) -> dict[str, Any]:
    """The options as the part's constructor wants them, numbers as numbers.

    elsewhere: settings of a name in other places, for one that this part does not have.

    Raises:
        RecipeError: every option that the constructor does not take or cannot read.
    """
    model = _options_model(find(role, kind))
    try:
        read = model.model_validate(dict(options))
    except ValidationError as error:
        lines = explain(error, model, unknown=f"{kind} has no such option", elsewhere=elsewhere)
        raise RecipeError("\n".join(lines)) from error
    return {name: getattr(read, name) for name in model.model_fields}


def option_names(role: str, kind: str) -> list[str]:
    """Raises RecipeError if there is no such part."""
    return [*_options_model(find(role, kind)).model_fields]


def option_lines(cls: type[Any]) -> list[str]:
    """Each option of a part as `name = default`, for listings."""
    model = _options_model(cls)
    return [
        name if field.is_required() else f"{name} = {field.default!r}"
        for name, field in model.model_fields.items()
    ]


def _options_model(cls: type[Any]) -> type[BaseModel]:
    """A pydantic model of a constructor's keyword-only arguments."""
    hints = get_type_hints(cls.__init__, include_extras=True)  # with the ranges of options
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in FILLED_IN:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{cls.__name__}Options", __config__=config, **fields)
