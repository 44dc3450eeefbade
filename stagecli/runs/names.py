"""Runs by name: a run is given by its path, or by its name in the folder of runs. No torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from stagecli.errors import Problem, StageError

MOST_NAMES = 12  # that an error lists
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


def unknown_run(reference: Path, runs_dir: Path = RUNS, kind: str = "run") -> StageError:
    """The error of a reference that names neither a folder nor a run; kind: what was wanted."""
    names = run_names(runs_dir)
    there = ", ".join([*names[:MOST_NAMES], *(["..."] if len(names) > MOST_NAMES else [])])
    known = f"there are: {there}" if names else "there is no run"
    near = _similar(reference, names, runs_dir)
    return StageError(
        f"there is no {kind} {str(reference)!r}",
        problems=[Problem(f"{runs_dir}/", known)],
        hint=f"did you mean `{near[0]}`?"
        if near
        else f"give a path, or a name in {runs_dir}/; `stagecli runs` lists them",
    )


def _similar(reference: Path, names: list[str], runs_dir: Path) -> list[str]:
    """What a reference may stand for, the likeliest first: names, or paths of runs."""
    choices = [*names, *(str(runs_dir / name) for name in names)]
    matches = [choice for choice in choices if choice.startswith(str(reference))]
    return matches or difflib.get_close_matches(str(reference), choices, n=1)
