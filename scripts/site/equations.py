"""Equations as drawings, made once by matplotlib: `$x$` in a line, `$$` around a block.

Nothing is loaded when a page is read, and they look alike in every browser, in light and dark.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath

BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
INLINE = r"(?<![\\$])\$(?! )([^$\n]+?)(?<! )\$(?![\d$])"
SIZE = 10.0  # of the font while drawing; the page scales it
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}


def drawn(formula: str, *, block: bool = False) -> str:
    """An equation in TeX, as far as matplotlib knows it, as SVG in the text's own colour.

    Raises:
        ValueError: it cannot be read.
    """
    tex = f"${' '.join(formula.split())}$"
    font = FontProperties(size=SIZE, math_fontfamily="stix")
    width, height, depth, *_ = MathTextParser("path").parse(tex, dpi=72, prop=font)
    outline = TextPath((0, 0), tex, prop=font, usetex=False)
    steps = []
    for points, code in outline.iter_segments(curves=True, simplify=False):
        pairs = points.reshape(-1, 2)
        shown = " ".join(f"{x:.2f} {-y:.2f}" for x, y in pairs)
        steps.append("Z" if code == Path.CLOSEPOLY else f"{COMMANDS[code]}{shown}")
    size = 1.12 if block else 1.04  # STIX is smaller than the text around it
    box = f'viewBox="-.3 {-height:.2f} {width + 0.6:.2f} {height + depth:.2f}"'
    style = (
        f"width:{size * (width + 0.6) / SIZE:.3f}em;height:{size * (height + depth) / SIZE:.3f}em;"
        f"vertical-align:{-size * depth / SIZE:.3f}em"
    )
    label = html.escape(" ".join(formula.split()))
    drawing = (
        f'<svg class="equation" role="img" aria-label="{label}" {box} style="{style}">'
        f'<title>{label}</title><path d="{"".join(steps)}" fill="currentColor"/></svg>'
    )
    return f'<div class="equation">{drawing}</div>' if block else drawing


class Blocks(Preprocessor):
    """Equations on lines of their own, once fenced code is out of the way."""

    def run(self, lines: list[str]) -> list[str]:
        def placed(found: re.Match[str]) -> str:
            return str(self.md.htmlStash.store(drawn(found[1], block=True)))

        return BLOCK.sub(placed, "\n".join(lines)).split("\n")


class Inline(InlineProcessor):
    """Equations within a line, once code spans are out of the way."""

    def handleMatch(  # type: ignore[override]
        self, m: re.Match[str], data: str
    ) -> tuple[Element | str, int, int]:
        return self.md.htmlStash.store(drawn(m[1])), m.start(0), m.end(0)


class Equations(Extension):
    """Both forms."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Blocks(md), "equations", 20)  # fences are taken at 25
        md.inlinePatterns.register(Inline(INLINE, md), "equation", 185)  # code spans at 190


def makeExtension(**options: Any) -> Equations:
    """What Markdown asks an extension's module for."""
    return Equations(**options)
