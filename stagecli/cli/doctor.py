"""`stagecli doctor`."""

from __future__ import annotations

from pathlib import Path

import typer

from stagecli.cli.help import examples
from stagecli.cli.options import AsJson, RunsDir
from stagecli.cli.threads import describe
from stagecli.errors import EXIT_FAILED
from stagecli.terminal.console import Console

EXAMPLES = examples("stagecli doctor", "stagecli doctor --json")


def doctor(runs_dir: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """Check that this machine can train."""
    from stagecli.train.doctor import examine_machine, show_examination

    console = Console(as_json)
    document = examine_machine(runs_dir, describe())
    console.result(document, lambda: show_examination(document, console))
    if not document["ok"]:
        raise typer.Exit(EXIT_FAILED)
