"""The documentation's site is built strictly, and asks for nothing outside."""

import asyncio
import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chromium import Chromium, find_chromium

pytest.importorskip("zensical", reason="the extra `docs`")

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(300)]  # on a busy machine

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once."""
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.site.build", out], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_there_and_in_the_navigation(site):
    index = (site / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        made = page.relative_to(ROOT / "docs").with_suffix(".html")
        if made.name == "README.html":
            made = made.with_name("index.html")
        assert (site / made).is_file()
        assert f'href="./{made}"' in index or str(made) == "index.html", made


def test_the_reference_is_made_from_the_code(site):
    from speechfuse import catalog, cli

    parts = (site / "reference" / "parts.html").read_text()
    for table in catalog.ROLES.values():
        for kind in table:
            assert f"<code>{kind}</code></h3>" in re.sub(r"<a class=.*?</a>", "", parts)
    commands = (site / "reference" / "commands.html").read_text()
    assert len(re.findall("<h2 ", commands)) == len(cli.app.registered_commands)
    recipe = (site / "reference" / "recipe.html").read_text()
    assert "Share of each task's batches" in recipe
    assert "training utterances for development, if it has none: of speakers" in recipe.replace(
        "Training", "training"
    )
    for page in (parts, commands, recipe):
        assert "made:" not in page


def test_equations_are_drawings_that_say_what_they_are(site):
    page = (site / "methods" / "unified_fusion.html").read_text()
    assert page.count('role="img" aria-label=') > 5
    assert "$" not in re.sub(r"<(pre|code|script|style).*?</\1>", "", page, flags=re.DOTALL)


def test_what_is_broken_ends_the_build(tmp_path, monkeypatch, capfd):
    import scripts.site.build as building

    page = tmp_path / "docs" / "index.md"
    page.parent.mkdir()
    page.write_text("# Page\n\n[a](nowhere.md) [b](#nothing) [c][speechfuse.types.Nothing]\n")
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    for name in ("scripts", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(building, "ROOT", tmp_path)
    monkeypatch.setattr(building, "navigation", lambda _: [{"Start": ["index.md"]}])
    assert building.build(tmp_path / "site") != 0
    said = re.sub(r"\x1b\[[\d;]*m", "", "".join(capfd.readouterr()))
    for complaint in ("page does not exist", "anchor does not exist", "unresolved autoref"):
        assert complaint in said
    page.write_text("[a](../recipes/nowhere.yaml)")
    with pytest.raises(FileNotFoundError, match=r"recipes/nowhere\.yaml, which is not there"):
        building.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_an_equation_that_cannot_be_drawn_is_an_error():
    from scripts.site.equations import drawn

    assert "<path" in drawn(r"\dfrac{a}{b}")
    with pytest.raises(ValueError, match="Unknown symbol"):
        drawn(r"\nonsense{x}")


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium")
def test_a_browser_asks_for_nothing_outside(site, tmp_path):
    handler = functools.partial(Quiet, directory=site)

    async def look(home):
        async with Chromium(tmp_path) as browser:
            for page in ("index.html", "reference/contracts.html", "methods/harmonifuse.html"):
                for dark in (False, True):
                    tab = await browser.open(home + page, 420 if dark else 1280, dark=dark)
                    await tab.until(
                        "document.querySelector('h1') && document.readyState == 'complete'"
                    )
                    await asyncio.sleep(0.5)
                    wide = await tab.js("document.documentElement.scrollWidth - window.innerWidth")
                    assert wide <= 0, page
                    assert not tab.complaints
                    assert len(tab.requests) > 3
                    assert all(url.startswith((home, "data:", "blob:")) for url in tab.requests)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asyncio.run(look(f"http://127.0.0.1:{server.server_port}/"))
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Answers without a word."""

    def log_message(self, *_):
        pass
