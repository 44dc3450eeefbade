"""Opens a run directory to train in it: locks and sweeps it, then starts or resumes. No torch."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from stagecli import __version__
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow, write_atomic
from stagecli.recipe.dump import dump_recipe
from stagecli.recipe.signature import signature
from stagecli.report.run_info import SCHEMA
from stagecli.runs import data_file
from stagecli.runs.directory import Notice, Run, free_name, is_run, move_aside, now, read_info
from stagecli.runs.integrity import folders
from stagecli.runs.lock import RunLock, lock_run
from stagecli.runs.resuming import (
    attempts_in_rows,
    evaluation_changes,
    refuse_other_recipe,
    saved_recipe,
)
from stagecli.runs.sweep import is_own, sweep
from stagecli.schema import Recipe

FOLDERS = ("checkpoints", "samples", "evals")


def open_run(
    recipe: Recipe,
    folder: Path,
    *,
    argv: Sequence[str],
    overrides: Sequence[str],
    restart: bool = False,
) -> Run:
    """Create the run directory, or open it to resume.

    restart: rename an existing run and start over.
    Raises StageError where the directory holds a run of another recipe (with the difference and the
    ways out), is being written by another process, holds something else, or cannot be written.
    """
    try:
        lock = _lock(folder)
        if restart and is_run(folder):
            try:
                move_aside(folder)
            finally:
                lock.release()
            lock = _lock(folder)
        try:
            run = _prepare(recipe, folder, lock, _new_info(recipe, folder, argv, overrides))
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise StageError(
            f"cannot write the run directory {folder}",
            problems=[Problem(str(error.filename or folder), error.strerror or str(error))],
            hint="choose a writable place with --runs-dir",
        ) from error
    return run


def _lock(folder: Path) -> RunLock:
    """Create the directory if it is missing, and lock it. Raises StageError, OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)  # so that a ".." in it has a meaning
    if not is_run(folder) and _holds_files(folder):
        raise StageError(
            f"{folder} exists but is not a run directory",
            hint="choose another directory with --name or --runs-dir; nothing is ever deleted",
        )
    folder.mkdir(exist_ok=True)
    return lock_run(folder)


def _prepare(recipe: Recipe, folder: Path, lock: RunLock, new: JsonRow) -> Run:
    """Open the locked directory: resume what is there, or start with `new` as its run.json.

    Raises StageError, OSError.
    """
    sweep(folder)
    notices = []
    if not lock.supported:
        notices.append(
            Notice("not locked", "the file system has no locks: start only one process on this run")
        )

    # Resume, refuse, or start. A start that failed before its first step (on bad data, for example)
    # does not block its name for a corrected recipe.
    before = None
    resumes = is_run(folder)
    if resumes:
        info = _readable_info(folder, new, notices)
        resumes = not _failed_to_start(info)
    if resumes:
        before, damage = saved_recipe(folder)
        refuse_other_recipe(recipe, folder, info, before)
        notices += [Notice("recipe.toml written again", reason) for reason in damage]
        info["steps"] = recipe.train.steps
        info["signature"] = info["signature"] or new["signature"]
        if before is not None and (changes := evaluation_changes(before, recipe)):
            reason = "scores from here on are not comparable with earlier ones: "
            notices.append(Notice("evaluation settings changed", reason + "; ".join(changes)))
    else:
        info = new

    # Write it: run.json first, as it makes the directory a run.
    run = Run(folder, info, lock, before=before, notices=notices)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    if not (info["attempts"] or folders(folder / "checkpoints")):  # of a start that trained nothing
        for name in ("codec.safetensors", data_file.NAME):
            (folder / name).unlink(missing_ok=True)
    run.save_info()
    write_atomic(folder / "recipe.toml", dump_recipe(recipe))
    return run


def _readable_info(folder: Path, new: JsonRow, notices: list[Notice]) -> JsonRow:
    """run.json; made again from the rows where it is damaged, and the damaged file is kept.

    Raises StageError where it is damaged and there is no checkpoint to continue from.
    """
    try:
        return read_info(folder)
    except StageError as error:
        if not folders(folder / "checkpoints"):
            raise
        path = folder / "run.json"
        why = error.problems[0].what if error.problems else error.message
        if path.exists():
            kept = free_name(path, "damaged")
            path.rename(kept)
            why += f"; the old file is {kept.name}"
        notices.append(Notice("run.json made again", f"run.json: {why}"))
        return {**new, "signature": "", "status": "unknown", "attempts": attempts_in_rows(folder)}


def _new_info(
    recipe: Recipe, folder: Path, argv: Sequence[str], overrides: Sequence[str]
) -> JsonRow:
    return {
        "schema": SCHEMA,
        "id": uuid.uuid4().hex[:12],
        "name": folder.name,
        "task": recipe.task.kind,
        "status": "created",
        "steps": recipe.train.steps,
        "parameters": None,
        "version": __version__,
        "signature": signature(recipe),
        "argv": list(argv),
        "set": list(overrides),
        "git": _git_version(),
        "created": now(),
        "attempts": [],
        "best": None,
        "message": None,
    }


def _failed_to_start(info: JsonRow) -> bool:
    return not info["attempts"] and info["status"] in ("failed", "interrupted")


def _holds_files(folder: Path) -> bool:
    """Whether a directory holds anything but what a killed start leaves there."""
    return folder.is_dir() and any(
        path.is_file() and not is_own(path) for path in folder.rglob("*")
    )


def _git_version() -> str | None:
    """`git describe` of the source, where it is a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
