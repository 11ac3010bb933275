"""Files that ship with the library: recipes, the two small encoders, templates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

_PACKAGE = Path(__file__).parent


def resource(kind: str, name: str) -> Path | None:
    """A shipped file or folder, inside the installed package or beside it in a checkout.

    kind: recipes or models. None if there is no such thing.
    """
    for root in (_PACKAGE, _PACKAGE.parents[1]):
        path = root / kind / name
        if path.exists():
            return path
    return None


def markdown_template(name: str) -> Template:
    """A shipped template of Markdown; what it asks for and is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("speechfuse"),
        autoescape=False,  # noqa: S701 - it is no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name)
