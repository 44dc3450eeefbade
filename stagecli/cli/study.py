"""`stagecli study`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stagecli import launcher
from stagecli.bounds import Range
from stagecli.cli.help import examples
from stagecli.cli.options import number_option
from stagecli.errors import EXIT_FAILED, EXIT_INTERRUPTED, Problem, StageError
from stagecli.terminal.console import Console

EXAMPLES = examples("stagecli study smallest", "stagecli study my.study.toml --workers 2")
WORKERS = Range(1, 1024)


def study(
    reference: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="Path of a study, or the name of a shipped one."),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the study; default: runs/studies/NAME."),
    ] = None,
    workers: Annotated[
        int | None,
        number_option(
            "--workers",
            limits=WORKERS,
            help="Runs at a time, each with one thread; default: one per core.",
        ),
    ] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", metavar="A,B", help="Only these arms.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1", help="Only these seeds.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Only report on what is there; train nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
) -> None:
    """Train arms of one recipe with the same seeds, score and compare them.

    The same command again goes on where it was.
    """
    from stagecli.study.load import find_study, load_study
    from stagecli.study.report import write_report

    # Only the report, from a study file or the folder of a study.
    console = Console()
    if report and Path(reference).is_dir():
        _report(Path(reference), console)
        return
    loaded = load_study(find_study(reference), output)
    if report:
        _report(loaded.folder, console)
        return

    # Train and score.
    from stagecli.study.launch import run_study, selected_runs
    from stagecli.terminal.study_views import make_study_view

    runs = selected_runs(loaded, _words(arms), _numbers(seeds))
    view = make_study_view(quiet)
    status, failures = run_study(loaded, runs, view, workers=workers or usable_cores())
    if status == "interrupted":
        console.note(f"interrupted; go on with:  {launcher.command(sys.argv[1:])}")
        raise typer.Exit(EXIT_INTERRUPTED)

    # Report.
    for path in write_report(loaded.folder, console):
        console.note(f"wrote {path}")
    if failures:
        raise StageError(
            f"{len(failures)} of {len(runs)} runs failed",
            problems=[Problem(str(run), message) for run, message in failures.items()],
            hint="the same command tries them again and keeps what is done",
            exit_code=EXIT_FAILED,
        )


def _report(folder: Path, console: Console) -> None:
    from stagecli.study.records import INFO
    from stagecli.study.report import write_report

    if not (folder / INFO).is_file():
        raise StageError(
            f"{folder} holds no study",
            problems=[Problem(str(folder / INFO), "is missing")],
            hint="run the study first, without --report; -o says where it is",
        )
    for path in write_report(folder, console):
        console.note(f"wrote {path}")


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _numbers(text: str | None) -> list[int]:
    words = _words(text)
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and len(word) < 20)]
    if wrong:
        raise StageError(f"--seeds: must be numbers with commas between, got {wrong[0]!r}")
    return [int(word) for word in words]


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
