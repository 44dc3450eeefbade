"""The Typer application: its commands, and how errors become exit codes."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from stagecli import __version__, launcher
from stagecli.cli import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    export,
    inspect_regime,
    recipes,
    runs,
    sample,
    study,
    train,
)
from stagecli.cli.completion import join_bash_words
from stagecli.cli.help import FIND, RESULTS, TRAIN, GroupedCommand, GroupedCommands, examples
from stagecli.cli.threads import prepare_threads
from stagecli.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Problem,
    StageError,
    causes,
    conceal,
    is_out_of_memory,
)
from stagecli.terminal.console import Console, write_line
from stagecli.terminal.streams import protect_streams

SHOWN_PATH = 200  # characters of a path in an error
# The base of every error of Typer's parser; not all versions have a public name for it.
ParserError: type[Any] = typer.BadParameter.mro()[2]
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# Flags that nobody gave are False. Without this they are None, and newer versions of Typer import
# pydantic to convert that, which doubles the time that the --help of a command takes.
DEFAULT_FLAGS = {
    "help": False,
    "install_completion": False,
    "show_completion": False,
    "recipes": {"help": False},
    "data": {"help": False},
}

app = typer.Typer(
    name="stagecli",
    cls=GroupedCommands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "default_map": DEFAULT_FLAGS},
    help="Train audio diffusion models stage-aware: text-to-audio (t2a) and super-resolution (sr).",
    epilog=examples(
        "stagecli train quickstart",
        'stagecli sample quickstart --prompt "a loud bell"',
        "stagecli --install-completion",
    ),
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


def _add(
    function: Callable[..., None],
    name: str | None = None,
    *,
    panel: str,
    examples: str,
    help: str | None = None,
) -> None:
    """Add a command under a heading of --help."""
    app.command(name, cls=GroupedCommand, rich_help_panel=panel, epilog=examples, help=help)(
        function
    )


_add(train.train, panel=TRAIN, examples=train.EXAMPLES)
_add(study.study, panel=TRAIN, examples=study.EXAMPLES)
_add(bench.bench, panel=TRAIN, examples=bench.EXAMPLES)
_add(
    inspect_regime.inspect_regime,
    "inspect-regime",
    panel=RESULTS,
    examples=inspect_regime.EXAMPLES,
)
_add(evaluate.evaluate, panel=RESULTS, examples=evaluate.EXAMPLES, help=evaluate.HELP)
_add(sample.sample, panel=RESULTS, examples=sample.EXAMPLES)
_add(demo.demo, panel=RESULTS, examples=demo.EXAMPLES)
_add(export.export, panel=RESULTS, examples=export.EXAMPLES)
app.add_typer(data.app, name="data", rich_help_panel=FIND)
app.add_typer(recipes.app, name="recipes", rich_help_panel=FIND)
_add(runs.runs, panel=FIND, examples=runs.EXAMPLES)
_add(doctor.doctor, panel=FIND, examples=doctor.EXAMPLES)


def _parse_and_run() -> int:
    """Run the command; its exit code. Typer's own errors quote arguments, so they are escaped."""
    try:
        return app(standalone_mode=False) or 0
    except ParserError as error:
        text = io.StringIO()
        error.show(file=text)
        write_line(text.getvalue().rstrip())
        return int(error.exit_code)
    except typer.Abort:
        return EXIT_FAILED


def _run() -> int:
    """Run the command. What the system refuses, such as too long a name, is a StageError."""
    try:
        return _parse_and_run()
    except BrokenPipeError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(
            "there is not enough memory",
            problems=[Problem("cause", text) for text in causes(error)[:1]],
            hint="choose a smaller batch, shorter crops or a smaller model",
            exit_code=EXIT_FAILED,
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        place = str(error.filename or "")
        problems = [Problem(place[:SHOWN_PATH], reason)] if place else []
        raise StageError(
            f"the system refuses: {reason}",
            problems=problems,
            hint="STAGECLI_DEBUG=1 shows where in the program",
            exit_code=EXIT_FAILED if error.errno in OUT_OF_SPACE else EXIT_USAGE,
        ) from error


def main() -> None:
    """Run the command line; a StageError becomes a message and an exit code.

    With STAGECLI_DEBUG=1 its traceback is printed instead, as that of any other exception always
    is. Of the processes that a launcher started only the first prints.
    """
    protect_streams()
    prepare_threads()
    join_bash_words(os.environ)
    try:
        code = _run()
    except StageError as error:
        if os.environ.get("STAGECLI_DEBUG") == "1":
            write_line(conceal(traceback.format_exc()))
        elif launcher.prints_errors():
            Console().error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_USAGE)
    except Exception:  # an error of ours; its message may quote files of others
        write_line(conceal(traceback.format_exc()))
        sys.exit(EXIT_FAILED)
    sys.exit(code)
