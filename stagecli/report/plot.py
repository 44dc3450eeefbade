"""`--plot FILE`: the panels of runs as one picture in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecli.errors import StageError
from stagecli.files import write_atomic
from stagecli.report.panels import run_panels
from stagecli.report.pictures.sheet import draw_file
from stagecli.report.run_report import RunReport

SUFFIXES = (".svg", ".png", ".pdf")


def write_plot(reports: Sequence[RunReport], path: str | Path) -> Path:
    """Write the curves of runs to `path` (.svg, .png or .pdf) and return it. Raises StageError."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise StageError(f"cannot plot to `{path}`", hint="end the file name in .svg, .png or .pdf")
    panels = run_panels(reports)
    if not panels:
        raise StageError(
            "there are no curves yet", hint="wait for the first log interval", exit_code=1
        )
    picture = draw_file(panels, path.suffix.removeprefix("."))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, picture)
    except OSError as problem:
        raise StageError(
            f"cannot write `{path}`: {problem.strerror or problem}", hint="name a writable file"
        ) from None
    return path
