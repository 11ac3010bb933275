import sys

import pytest
from typer.testing import CliRunner

from speechfuse.cli import app
from speechfuse.errors import SpeechFuseError


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, workspace, library):
    (workspace / "recipe.yaml").touch()
    for name in [name for name in sys.modules if name.startswith("speechfuse.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    done = CliRunner().invoke(app, ["serve", "."])
    assert isinstance(done.exception, SpeechFuseError)
    assert "pip install 'speechfuse[demo]'" in str(done.exception)
