"""The Typer application: its commands, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from stagecli import __version__, launcher
from stagecli.cli import doctor, evaluate, inspect_regime, recipes, sample, train
from stagecli.errors import EXIT_INTERRUPTED, EXIT_USAGE, StageError
from stagecli.terminal.console import Console
from stagecli.terminal.streams import protect_streams

# Flags that nobody gave are False. Without this they are None, and newer versions of Typer import
# pydantic to convert that, which doubles the time that the --help of a command takes.
DEFAULT_FLAGS = {
    "help": False,
    "install_completion": False,
    "show_completion": False,
    "recipes": {"help": False},
}

app = typer.Typer(
    name="stagecli",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "default_map": DEFAULT_FLAGS},
    help="Train audio diffusion models stage-aware: text-to-audio (t2a) and super-resolution (sr).",
)


def _show_version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"stagecli {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=evaluate.EXAMPLES, help=evaluate.HELP)(evaluate.evaluate)
app.command("inspect-regime", epilog=inspect_regime.EXAMPLES)(inspect_regime.inspect_regime)
app.command(epilog=sample.EXAMPLES)(sample.sample)
app.command()(doctor.doctor)
app.add_typer(recipes.app, name="recipes")


def main() -> None:
    """Run the command line; a StageError becomes a message and an exit code.

    With STAGECLI_DEBUG=1 it is raised instead, with its traceback. Of the processes that a launcher
    started only the first prints.
    """
    protect_streams()
    try:
        app(standalone_mode=True)
    except StageError as error:
        if os.environ.get("STAGECLI_DEBUG") == "1":
            raise
        if launcher.prints_errors():
            Console().error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_USAGE)
