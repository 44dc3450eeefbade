"""Removes what killed processes left in a run: files and folders that only they could name so."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from stagecli.files import LEFTOVER
from stagecli.runs.lock import LOCK

AGE = 3600  # seconds after which a temporary file of `evaluate` or `sample` is no longer written


def is_own(path: Path) -> bool:
    """Whether a file in a run directory that was never finished is the trainer's own."""
    return path.name == LOCK or LEFTOVER.fullmatch(path.name) is not None


def sweep(run: Path) -> None:
    """Remove leftovers from the run directory `run`, which the caller has locked. Raises OSError.

    A checkpoint that was being replaced comes back. Other processes may be writing samples and
    evaluations at this moment: their temporary files go after an hour.
    """
    # The files of a run, and the pointer to the newest checkpoint.
    checkpoints = run / "checkpoints"
    for folder in (run, checkpoints):
        _remove_files(folder.glob(".*.tmp"), age=0)
    for name in ("samples", "evals"):
        _remove_files((run / name).rglob(".*.tmp"), age=AGE)

    # Checkpoints that were being written, replaced or removed.
    for path in checkpoints.glob(".step_*"):
        final = checkpoints / path.stem.removeprefix(".")
        if path.is_symlink() or not path.is_dir():
            continue
        if path.suffix == ".stale" and not final.exists():
            os.replace(path, final)
        elif path.suffix in (".partial", ".stale", ".removed"):
            shutil.rmtree(path)


def _remove_files(paths: Iterable[Path], age: float) -> None:
    for path in paths:
        if LEFTOVER.fullmatch(path.name) and time.time() - path.lstat().st_mtime >= age:
            path.unlink(missing_ok=True)
