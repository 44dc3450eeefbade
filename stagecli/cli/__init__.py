"""The command line: flags -> plain function calls.

The only room that imports Typer. Commands import their work inside the function, so that `--help`
stays fast.
"""

from stagecli.cli.entry import app, main

__all__ = ["app", "main"]
