"""Links that lead out of docs/, to recipes and code: each such file becomes a page of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")
LANGUAGES = {".yaml": "yaml", ".py": "python", ".toml": "toml", ".md": "markdown"}


class SourceLinks:
    """Copies what is linked into the pages' folder and leads the links there."""

    def __init__(self, root: Path, docs: Path) -> None:
        """root: of the repository. docs: its pages' copy."""
        self.root, self.docs = root, docs

    def led(self, text: str, page: Path) -> str:
        """The text of a page of docs/ (its path below) with links to pages for files outside.

        Raises:
            FileNotFoundError: a link to a file that is not there.
        """

        def changed(found: re.Match[str]) -> str:
            target = Path(os.path.normpath(self.root / "docs" / page.parent / found[1]))
            if target.is_relative_to(self.root / "docs") or not target.is_relative_to(self.root):
                return found[0]
            to = os.path.relpath(self.shown(target), self.docs / page.parent)
            return f"]({Path(to).as_posix()})"

        return LINK.sub(changed, text)

    def shown(self, target: Path) -> Path:
        """The page of a file or of a folder with the files in it."""
        name = target.relative_to(self.root)
        if not target.exists():
            raise FileNotFoundError(f"a page links to {name}, which is not there")
        if target.is_dir():
            page = self.docs / "source" / name / "index.md"
            files = sorted(one for one in target.iterdir() if one.suffix in LANGUAGES)
            lines = [f"* [{one.name}]({self.shown(one).name})" for one in files]
            text = f"# {name}\n\n" + "\n".join(lines) + "\n"
        else:
            page = self.docs / "source" / name.with_name(f"{name.name}.md")
            fence = f"````{LANGUAGES.get(target.suffix, 'text')}"
            text = f"# {name}\n\n{fence}\n{target.read_text()}\n````\n"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)
        return page
