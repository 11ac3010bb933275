"""The command line. Only this package prints and chooses exit codes; 2 is the user's error.

A file for each group of commands, in the order of --help.
"""

from speechfuse.cli import begin, data, before, runs, others, speed  # noqa: F401, I001
from speechfuse.cli.shared import app, main

__all__ = ["app", "main"]
