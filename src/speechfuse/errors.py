"""The errors a user can cause, each saying what was found, what was expected and what to do."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class SpeechFuseError(Exception):
    """Base of every error this library raises on purpose; the command line exits with 2 on it."""


class ShapeError(SpeechFuseError, ValueError):
    """Two parts of a model disagree about layers, frames or feature width."""


class RecipeError(SpeechFuseError, ValueError):
    """A recipe names something unknown or contradicts itself."""


class DataError(SpeechFuseError, ValueError):
    """A manifest, an audio file or a label is not what it has to be."""


class UpstreamError(SpeechFuseError, ValueError):
    """A foundation model cannot be found, read or used."""


class RunError(SpeechFuseError, ValueError):
    """A run folder does not hold what it should, or belongs to another recipe."""


class ExportError(SpeechFuseError, ValueError):
    """A run has a part that no graph can be made of, or its graph does not do what the run does."""


@contextmanager
def damage(what: object, kind: type[SpeechFuseError], remedy: str) -> Iterator[None]:
    """Whatever is raised within, where a file is read that a machine wrote, is damage of it.

    An error that says so itself stays, and so does a file that is gone or may not be read.
    """
    try:
        yield
    except (SpeechFuseError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # there is no end to what may be wrong with it
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise kind(f"{what} is damaged ({type(error).__name__}: {said}); {remedy}") from error


_SHOWN = 60  # names in a hint: all parts of a kind, and not all speakers of a corpus


def did_you_mean(name: str, known: Iterable[str], elsewhere: Sequence[str] = ()) -> str:
    """A hint that lists the known names and suggests the nearest one.

    elsewhere: things of this very name in other places, which are nearer than any other name.

    >>> did_you_mean("hcnov", ["hconv", "weighted_sum"])
    "known: hconv, weighted_sum. Did you mean 'hconv'?"
    >>> did_you_mean("steps", ["seed", "store"], ["training.steps"])
    "known: seed, store. Did you mean 'training.steps'?"
    >>> did_you_mean("one", ["both, HConv", "two"])
    "known: 'both, HConv', two."
    >>> did_you_mean("x", map(str, range(100_000)))[-28:]
    '10049, 1005 and 99,940 more.'
    """
    names = sorted(known)
    near = [f"'{one}'" for one in elsewhere[:3] or difflib.get_close_matches(name, names, n=1)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    shown = [f"'{one}'" if "," in one else one for one in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"known: {', '.join(shown) or 'none'}{more}.{hint}"
