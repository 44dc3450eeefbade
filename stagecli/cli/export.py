"""`stagecli export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from stagecli.cli.completion import complete_run
from stagecli.cli.help import examples
from stagecli.cli.options import AsJson, Force
from stagecli.errors import StageError
from stagecli.terminal.console import Console

EXAMPLES = examples(
    "stagecli export quickstart bells",
    "stagecli export runs/my my-model --license mit --push-to-hub ORG/my-model",
)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def _licence(value: str) -> str:
    if LICENCE.fullmatch(value) is None:
        raise StageError(
            f"--license {value[:60]}: not the id of a licence",
            hint="give it as the model hub spells it, such as mit, cc-by-4.0 or apache-2.0",
        )
    return value


def export(
    run: Annotated[
        str, typer.Argument(help="Run, by its directory or name.", autocompletion=complete_run)
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    *,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best, or a step.")
    ] = "latest",
    licence: Annotated[
        str,
        typer.Option(
            "--license", metavar="ID", callback=_licence, help="Licence of the model, for its card."
        ),
    ] = "unknown",
    hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="ORG/NAME", help="Upload it to the model hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new model on the hub visible to you alone.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a slim folder to hand on: EMA weights, codec, recipe and a model card with the scores.

    `sample`, `evaluate`, `train.init` and `stagecli.load` read it as they read a run.
    """
    console = Console(as_json)
    if private and hub is None:
        raise StageError("--private is about the hub", hint="add --push-to-hub ORG/NAME")
    from stagecli.export.command import Options
    from stagecli.export.command import export as write_export

    options = Options(checkpoint=checkpoint, force=force, licence=licence, hub=hub, private=private)
    result = write_export(run, folder, options, warn=console.warn)
    console.result(result, lambda: console.note(_summary(result)))


def _summary(result: dict[str, object]) -> str:
    size = int(str(result["bytes"])) / 2**20
    line = (
        f"wrote {result['folder']}: step {result['step']}, {result['files']} files, {size:.1f} MB"
    )
    return f"{line}; pushed to {result['address']}" if result["address"] else line
