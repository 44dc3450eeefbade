"""Runs by name: a run is given by its path, or by its name in the folder of runs. No torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from stagecli.errors import Problem, StageError

RUNS = Path("runs")  # where runs are kept unless --runs-dir says otherwise


def run_names(runs_dir: Path = RUNS) -> list[str]:
    """Names of the runs of a folder, sorted: `NAME`, or `GROUP/NAME` in a folder of it."""
    files = [*runs_dir.glob("*/run.json"), *runs_dir.glob("*/*/run.json")]
    return sorted(file.parent.relative_to(runs_dir).as_posix() for file in files)


def find_run(reference: Path, runs_dir: Path = RUNS) -> Path:
    """The folder that `reference` names: its path, or a name in `runs_dir`. A path wins.

    Whether it holds a run is not checked. Raises StageError that suggests the nearest name; the
    beginning of a name is not enough, which another run might share one day.
    """
    if os.path.lexists(reference):
        return reference
    named = runs_dir / reference
    if named.is_dir():
        return named
    raise unknown_run(reference, runs_dir)


def unknown_run(reference: Path, runs_dir: Path = RUNS) -> StageError:
    """The error of a reference that names neither a folder nor a run."""
    near = _similar(reference, runs_dir)
    hint = f"did you mean `{near[0]}`?" if near else f"`stagecli runs` lists the runs in {RUNS}/"
    return StageError(
        f"there is no run {reference}",
        problems=[Problem(str(reference), f"no such folder, and no such name in {runs_dir}/")],
        hint=hint,
    )


def _similar(reference: Path, runs_dir: Path) -> list[str]:
    """What a reference may stand for, the likeliest first: names, or paths of runs."""
    names = run_names(runs_dir)
    choices = [*names, *(str(runs_dir / name) for name in names)]
    matches = [choice for choice in choices if choice.startswith(str(reference))]
    return matches or difflib.get_close_matches(str(reference), choices, n=1)
