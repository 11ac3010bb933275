"""python -m speechfuse.cli is the command."""

from speechfuse.cli.shared import main

main()
