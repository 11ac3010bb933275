"""Build the documentation's site from docs/ and the code, offline; any broken link is an error.

python -m scripts.site.build [FOLDER]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from scripts.site.pages import navigation
from scripts.site.reference import MADE
from scripts.site.sources import SourceLinks

ROOT = Path(__file__).resolve().parents[2]


def build(out: Path) -> int:
    """Write the site; the exit code of its generator."""
    with TemporaryDirectory() as made:
        pages = Path(made) / "docs"
        shutil.copytree(ROOT / "docs", pages)
        links = SourceLinks(ROOT, pages)
        for path in sorted(pages.rglob("*.md")):
            text = links.led(path.read_text(), path.relative_to(pages))
            for mark, make in MADE.items():
                if mark in text:
                    text = text.replace(mark, make())
            path.write_text(text)
        config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
        config["nav"] = navigation(pages)
        config["site_dir"] = "site"
        mkdocstrings = next(
            one["mkdocstrings"] for one in config["plugins"] if isinstance(one, dict)
        )
        mkdocstrings["handlers"]["python"]["paths"] = [str(ROOT / "src")]
        (Path(made) / "mkdocs.yml").write_text(yaml.safe_dump(config))
        command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
        done = subprocess.run(
            [*command, "-f", "mkdocs.yml"], cwd=made, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        if done.returncode == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(Path(made) / "site", out)
    return done.returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")))
