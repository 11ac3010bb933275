"""What figures with a panel for each question over layers share, and the page that shows them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from speechfuse.checkpoint import versions, write_text

STEADY: Any = {"svg.fonttype": "none", "svg.hashsalt": "speechfuse"}  # an SVG has text as text


def dress(axis: Any, title: str, across: str = "layer") -> None:
    """A title, a grid and the name of what runs across."""
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(across, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, axis: Any) -> None:
    """One for all panels, of what this one shows."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def svg(figure: Any) -> str:
    """A figure as inline SVG, text as text."""
    from matplotlib import rc_context

    with rc_context(STEADY):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_page(template: str, out: Path, **values: Any) -> Path:
    """OUT/report.html of one of our templates, whose values are escaped.

    The versions of libraries are this process's, unless they are among the values.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("speechfuse.experiments"), autoescape=select_autoescape(["j2"])
    )
    shown = {"versions": versions().splitlines()} | values
    page = environment.get_template(template).render(shown)
    path = out / "report.html"
    write_text(path, page)
    return path
