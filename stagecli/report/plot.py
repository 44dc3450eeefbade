"""`--plot FILE`: the panels of runs as one picture in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecli.errors import StageError
from stagecli.report.panels import run_panels
from stagecli.report.pictures.sheet import draw_file
from stagecli.report.run_report import RunReport
from stagecli.targets import write_target

SUFFIXES = (".svg", ".png", ".pdf")


def write_plot(reports: Sequence[RunReport], path: str | Path, *, force: bool = False) -> Path:
    """Write the curves of runs to `path` (.svg, .png or .pdf) and return it.

    force: replace a file that exists. Raises StageError.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise StageError(f"cannot plot to `{path}`", hint="end the file name in .svg, .png or .pdf")
    panels = run_panels(reports)
    if not panels:
        raise StageError(
            "there are no curves yet", hint="wait for the first log interval", exit_code=1
        )
    picture = draw_file(panels, path.suffix.removeprefix("."))
    write_target(path, picture, force=force)
    return path
