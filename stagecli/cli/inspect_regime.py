"""`stagecli inspect-regime`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stagecli.bounds import UPDATE_SECONDS
from stagecli.cli.completion import complete_run
from stagecli.cli.help import OUTPUT, examples
from stagecli.cli.options import AsJson, Force, number_option
from stagecli.errors import EXIT_INTERRUPTED
from stagecli.terminal.console import Console

EXAMPLES = examples(
    "stagecli inspect-regime quickstart",
    "stagecli inspect-regime runs/a runs/b --html report.html",
    "stagecli inspect-regime quickstart --follow",
)


def inspect_regime(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="One or more run directories, or names of runs.", autocompletion=complete_run
        ),
    ],
    *,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Draw the curves to FILE.png or FILE.svg.", rich_help_panel=OUTPUT
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a self-contained HTML page.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Print updates while a run trains.",
            rich_help_panel="While it trains",
        ),
    ] = False,
    every: Annotated[
        float,
        number_option(
            "--every",
            limits=UPDATE_SECONDS,
            help="Seconds between updates, with --follow.",
            panel="While it trains",
        ),
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show where training stands: regime, loss by noise bin, speed, events and what they mean."""
    from stagecli.runs.names import find_run

    console = Console(as_json)
    runs = [find_run(run) for run in runs]
    _plan_pictures(runs, plot, html, force)
    if follow:
        from stagecli.terminal.follow import follow as follow_runs

        try:
            # Each update replaces the pictures of the one before.
            follow_runs(runs, lambda: _summarise(runs, plot, html, True, None), console, every)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        return
    from stagecli.terminal.inspect import inspect

    summaries = _summarise(runs, plot, html, force, console)
    document = summaries if len(summaries) > 1 else summaries[0]
    console.result(document, lambda: inspect(summaries, console))


def _plan_pictures(runs: list[Path], plot: Path | None, html: Path | None, force: bool) -> None:
    from stagecli.targets import Target, plan_targets

    pictures = [Target(path, flag) for path, flag in ((plot, "--plot"), (html, "--html")) if path]
    plan_targets(pictures, inputs=runs, force=force, make_folders=True)


def _summarise(
    runs: list[Path], plot: Path | None, html: Path | None, force: bool, console: Console | None
) -> list[dict[str, Any]]:
    """Write the pictures asked for and return the summaries of the runs.

    console: reports damaged rows and written files; None: silent.
    """
    from stagecli.report.run_report import read_run
    from stagecli.report.summary import summarize_run

    reports = [read_run(run) for run in runs]
    if console:
        for run_report in reports:
            for damage in run_report.damage:
                console.warn(damage)
    for path in _write_pictures(reports, plot, html, force):
        if console:
            console.note(f"wrote {path}")
    return [summarize_run(run_report) for run_report in reports]


def _write_pictures(
    reports: list[Any], plot: Path | None, html: Path | None, force: bool
) -> list[Path]:
    """Paths of the pictures that were written."""
    written: list[Path] = []
    if plot or html:
        from stagecli.evaluate.score_html import scores_html
        from stagecli.report.html import html_page
        from stagecli.report.plot import write_plot
        from stagecli.targets import write_target

        if plot:
            written.append(write_plot(reports, plot, force=force))
        if html:
            scores = scores_html(entry for report in reports for entry in report.evals)
            write_target(html, html_page(reports, scores), force=force)
            written.append(html)
    return written
