"""Code blocks of Markdown pages, and how each kind of them is run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.request import urlopen

import typer
import yaml
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.build import read_recipe
from speechfuse.cli import begin, runs, shared
from speechfuse.plan import plan_recipe
from speechfuse.recipe import merged

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[a-z ]+): (?P<why>[^>]+) -->\n)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MARKS = ("not run",)  # what a page may say before a block, with a reason
RUN = {
    *("plan", "parts", "prepare", "audit", "extract", "train", "evaluate", "compare", "predict"),
    *("weights", "alpha", "publish", "cost", "doctor", "prune"),
}  # the others take minutes: they are parsed; serve is begun
QUICK = ["training.steps=2", "training.batch_seconds=4"]  # what takes hours is done in seconds
DEFAULT = "http://127.0.0.1:7860"  # where `serve` listens
OTHERS = ("make", "pip", "curl", "git", "cd", "export", "torchrun", "srun", "source", "python3")


@dataclass(frozen=True)
class Block:
    """One code block and where it stands."""

    page: str
    line: int
    language: str
    title: str | None
    mark: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        language, title, mark = match["language"], match["title"], match["mark"]
        name = page.relative_to(ROOT).as_posix()
        assert mark in (None, *MARKS), f"{name}:{line}: '{mark}', expected one of {MARKS}"
        found.append(Block(name, line, language, title, mark, match["text"]))
    return found


def commands(block: Block) -> list[list[str]]:
    """Each command line of a block of shell as words, without comments and what it is piped to."""
    text = block.text.replace("\\\n", " ")
    if block.language == "":  # a session: what was typed and what came
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    found = []
    for line in text.splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "|"]:
            if word in ("|", "&&", ";", ">", ">>"):
                if words:
                    found.append(words)
                words = []
            else:
                words.append(word)
    return found


def parse(words: list[str], place: str) -> list[str] | None:
    """Check a command; the arguments of speechfuse if it calls that.

    What torchrun or srun begin is looked at, too; targets of make and extras of pip must be there.
    """
    if words[0] != "speechfuse":
        assert words[0] in OTHERS, f"{place}: {words[0]} is not known here"
        if words[0] == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            unknown = {word for word in words[1:] if "=" not in word} - {*targets}
            assert not unknown, f"{place}: make has no {unknown}"
        for extras in re.findall(r"speechfuse\[(.*?)\]", " ".join(words)):
            known = (ROOT / "pyproject.toml").read_text()
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", known, re.MULTILINE), f"{place}: {extra}"
        if "speechfuse" not in words[1:]:
            return None
        words = words[words.index("speechfuse") :]
    group = _group()
    name, *arguments = words[1:]
    assert name in group.commands, f"{place}: no command {name}"
    with typer.Context(group, info_name="speechfuse") as context, runs_as_named():
        try:
            group.commands[name].make_context(name, [*arguments], parent=context)
        except Exception as error:
            message = getattr(error, "message", error)
            raise AssertionError(f"{place}: {' '.join(words)}: {message}") from error
    return [name, *arguments]


@contextmanager
def runs_as_named() -> Iterator[None]:
    """Whether a run is there is not asked."""
    with (
        mock.patch.object(shared, "check_run", lambda folder: folder),
        mock.patch.object(runs, "check_run", lambda folder: folder),
        mock.patch.object(begin, "runs_below", lambda folder: [folder]),
    ):
        yield


@cache
def _group() -> Any:
    """All commands, which take a while to make."""
    return typer.main.get_command(cli.app)


@dataclass
class Page:
    """A page at work in the current folder: its names, its files and its last whole recipe."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    recipe: dict[str, Any] | None = None
    service: subprocess.Popen[str] | None = None  # the last that the page has begun
    address: str | None = None  # of it

    def close(self) -> None:
        """End the service."""
        if self.service is not None:
            self.service.terminate()
            self.service.communicate()

    def run(self, block: Block) -> None:
        """Run one block.

        Raises:
            AssertionError: what went wrong, and where it stands.
        """
        try:
            self._run(block)
        except Exception as error:
            what = str(error).removeprefix(f"{block.place}: ")
            raise AssertionError(f"{block.place}: {type(error).__name__}: {what}") from error

    def _run(self, block: Block) -> None:
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        if block.language == "python" and block.mark is None:
            code = compile("\n" * block.line + block.text, str(ROOT / block.page), "exec")
            exec(code, self.names)
        elif block.language == "yaml":
            self._yaml(block)
        elif block.language in ("sh", ""):
            for words in commands(block):
                arguments = parse(words, block.place)
                if arguments and block.mark is None and arguments[0] == "serve":
                    self._serve(arguments, block.place)
                elif words[0] == "curl" and self.address and shutil.which("curl"):
                    self._ask(words, block.place)
                elif arguments and block.mark is None and arguments[0] in RUN:
                    self._command(arguments, block.place)
                elif arguments:
                    self._files(arguments, block.place)
        else:
            assert block.language in ("python", "text", "tsv"), block.place

    def _yaml(self, block: Block) -> None:
        read = yaml.safe_load(block.text)
        if "upstreams" in read:
            self.recipe = read
        else:
            assert self.recipe is not None, f"{block.place}: a part of which recipe?"
            read = merged(self.recipe, read)
        tables = plan_recipe(read_recipe(read))
        assert tables, block.place

    def _command(self, arguments: list[str], place: str) -> None:
        if arguments[0] in ("train", "extract"):
            arguments = [*arguments, *QUICK]
        if arguments[0] == "prune":
            arguments = [*arguments, "--steps", "2", "--repeats", "1"]
        if arguments[0] == "audit":
            arguments = [*arguments, "--jobs", "1"]  # processes of its own take longer to begin
        if arguments[0] == "train":  # a run that is there has learned more: it stays
            out = arguments.index("--out") + 1
            while Path(arguments[out]).exists():
                arguments[out] += "-again"
        done = CliRunner().invoke(cli.app, arguments)
        said = f"{place}: speechfuse {' '.join(arguments)}\n{done.output}"
        if done.exception and not isinstance(done.exception, SystemExit):
            raise AssertionError(said) from done.exception
        assert done.exit_code == 0, said

    def _serve(self, arguments: list[str], place: str) -> None:
        """On a free port, until the page ends."""
        self.close()
        command = [sys.executable, "-m", "speechfuse.cli", *arguments, "--port", "0"]
        self.service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.service.stdout is not None
        said = self.service.stdout.readline()
        _, _, self.address = said.strip().rpartition(" on ")
        assert self.address.startswith("http://"), f"{place}: {' '.join(command)}: {said}"
        with urlopen(f"{self.address}/healthz", timeout=60) as answer:
            assert json.load(answer)["status"] == "ok", place

    def _ask(self, words: list[str], place: str) -> None:
        """Of the service, which answers in JSON."""
        asked = [word.replace(DEFAULT, str(self.address)) for word in words]
        limits = ["-sS", "--fail-with-body", "--max-time", "60"]
        done = subprocess.run([*asked, *limits], capture_output=True, text=True, check=False)
        assert not done.returncode, f"{place}: {' '.join(words)}\n{done.stdout}{done.stderr}"
        json.loads(done.stdout)

    def _files(self, arguments: list[str], place: str) -> None:
        """Recipes that are named, but not run, are there."""
        for word in arguments[1:]:
            if word.endswith(".yaml"):
                here = [base for base in (self.folder, ROOT) if (base / word).is_file()]
                assert here, f"{place}: no file {word}"


def forget(folder: Path) -> None:
    """Modules that a page has written are not those of the next page."""
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
