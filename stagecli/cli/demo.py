"""`stagecli demo`."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from stagecli.bounds import Range
from stagecli.cli.completion import complete_run
from stagecli.cli.help import examples
from stagecli.cli.options import number_option
from stagecli.terminal.console import Console

EXAMPLES = examples("stagecli demo quickstart", "stagecli demo runs/sr --port 8000")
PORTS = Range(1, 65_535)


def demo(
    run: Annotated[
        str, typer.Argument(help="Folder or name of a run.", autocompletion=complete_run)
    ],
    *,
    port: Annotated[
        int | None,
        number_option("--port", limits=PORTS, help="Port; default: a free one from 7860."),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best, or a step.")
    ] = "latest",
) -> None:
    """Serve a page on this machine to try a model with prompts or files; Ctrl-C ends it."""
    from stagecli.generate.demo import build_page, open_trial, require_gradio, serve

    console = Console()
    require_gradio()
    with open_trial(run, checkpoint, console.warn) as trial, serve(build_page(trial), port) as url:
        console.note(f"open {url} in a browser; Ctrl-C ends")
        threading.Event().wait()
