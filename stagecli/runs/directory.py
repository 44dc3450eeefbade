"""The run directory: its files, rows, attempts, and how one is opened. No torch.

runs/<name>/  recipe.toml (resolved; runnable)  run.json  environment.json
  metrics.jsonl  bins.jsonl  events.jsonl  probes.jsonl     flat rows: step, time, attempt, ...
  codec.safetensors                                         statistics of the training set
  data.json                                                 report on the data, fingerprint
  checkpoints/step_00010000/  latest (text pointer)         see checkpoint.py
  samples/  evals/
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from stagecli import __version__
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow, append_json_lines, finite, write_atomic, write_json
from stagecli.recipe.dump import dump_recipe
from stagecli.recipe.load import load_from_run
from stagecli.recipe.signature import signature
from stagecli.runs import data_file
from stagecli.runs.resuming import evaluation_changes, refuse_other_recipe, refuse_second_writer
from stagecli.schema import Recipe

SCHEMA = 1
FOLDERS = ("checkpoints", "samples", "evals")
PACKAGES = (
    "torch",
    "torchaudio",
    "accelerate",
    "transformers",
    "safetensors",
    "soundfile",
    "numpy",
    "scipy",
)


class Run:
    """One run directory, open for writing by the main process.

    info: the content of run.json; evaluation_changes: settings of the evaluation that this attempt
    changes, as "key: before -> now".
    """

    def __init__(self, path: Path, info: JsonRow, evaluation_changes: Sequence[str] = ()) -> None:
        self.path = path
        self.info = info
        self.evaluation_changes = list(evaluation_changes)

    @property
    def attempt(self) -> int:
        """Number of the newest attempt, from 1; 0 before the first."""
        return len(self.info["attempts"])

    @property
    def checkpoints(self) -> Path:
        """Directory that holds the checkpoints."""
        return self.path / "checkpoints"

    def save_info(self, **changes: object) -> None:
        """Write run.json with some values changed. Raises OSError."""
        self.info.update(changes)
        write_json(self.path / "run.json", self.info)

    def append(self, stream: str, row: Mapping[str, object]) -> JsonRow:
        """Add one row to a JSONL stream, with time and attempt. Returns the row as written.

        Raises OSError.
        """
        written = finite(
            {
                "step": row["step"],
                "time": round(time.time(), 3),
                "attempt": self.attempt,
                **row,
            }
        )
        append_json_lines(self.path / f"{stream}.jsonl", [written])
        return written

    def begin_attempt(self, from_step: int, argv: Sequence[str]) -> None:
        """Record that this process trains from a step on. Raises OSError."""
        self.info["attempts"].append(
            {
                "attempt": self.attempt + 1,
                "from_step": from_step,
                "started": _now(),
                "ended": None,
                "status": "running",
                "argv": list(argv),
                "pid": os.getpid(),
            }
        )
        self.save_info(status="running", message=None)
        write_json(self.path / "environment.json", environment())

    def end_attempt(self, status: str, message: str | None = None) -> None:
        """Record how the newest attempt ended. Raises OSError."""
        self.info["attempts"][-1].update(ended=_now(), status=status)
        self.save_info(status=status, message=message)


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
    if restart and (folder / "run.json").exists():
        refuse_second_writer(folder, read_info(folder))  # its next checkpoint would end up here
        move_aside(folder)

    # Resume, refuse, or start. A start that failed before its first step (on bad data, for example)
    # does not block its name for a corrected recipe.
    changes: list[str] = []
    resumes = (folder / "run.json").exists() and not _failed_to_start(read_info(folder))
    if resumes:
        info = read_info(folder)
        refuse_other_recipe(recipe, folder, info)
        refuse_second_writer(folder, info)
        info["steps"] = recipe.train.steps
        if (folder / "recipe.toml").exists():
            changes = evaluation_changes(load_from_run(folder / "recipe.toml"), recipe)
    elif not (folder / "run.json").exists() and _holds_files(folder):
        raise StageError(
            f"{folder} exists but is not a run directory",
            hint="choose another directory with --name or --runs-dir; nothing is ever deleted",
        )
    else:
        info = _new_info(recipe, folder, argv, overrides)

    # Write it: run.json first, as it makes the directory a run that a kill cannot block.
    run = Run(folder, info, changes)
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not info["attempts"]:  # what a start left behind that trained nothing
            for name in ("codec.safetensors", data_file.NAME):
                (folder / name).unlink(missing_ok=True)
        run.save_info()
        write_atomic(folder / "recipe.toml", dump_recipe(recipe))
    except OSError as error:
        raise StageError(
            f"cannot write the run directory {folder}",
            problems=[Problem(str(folder), error.strerror or str(error))],
            hint="choose a writable place with --runs-dir",
        ) from error
    return run


def read_info(path: Path) -> JsonRow:
    """run.json of a run directory. Raises StageError where there is none."""
    try:
        return json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StageError(
            f"not a run directory: {path}",
            problems=[Problem(str(path / "run.json"), str(error))],
            hint="give a directory made by `stagecli train`, such as runs/quickstart",
        ) from error


def newest(runs_dir: Path, task: str | None = None, finished: bool = True) -> Path:
    """The newest (finished) run of a task under `runs_dir`. Raises StageError if there is none."""
    matches = []
    for path in runs_dir.glob("*/run.json"):
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        right_task = task is None or info.get("task") == task
        if right_task and (not finished or info.get("status") == "finished"):
            matches.append((path.stat().st_mtime, path.parent))
    if not matches:
        words = ["finished" if finished else "", task or "", "run"]
        raise StageError(
            f"no {' '.join(filter(None, words))} under {runs_dir}/",
            hint="name a run directory, or train one: `stagecli train quickstart`",
        )
    return max(matches)[1]


def move_aside(folder: Path) -> None:
    """Rename a run directory to the first free NAME.old-1, NAME.old-2, ..."""
    number = 1
    while (renamed := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(renamed)


# -- this machine --------------------------------------------------------------------------------


def environment() -> JsonRow:
    """Python, machine and package versions; None for a package that is not installed."""
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "stagecli": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
    }


def command_line() -> list[str]:
    """The command that runs, its program by name alone."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`."""
    return shutil.disk_usage(path).free


# -- a new run -----------------------------------------------------------------------------------


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
        "created": _now(),
        "attempts": [],
        "best": None,
        "message": None,
    }


def _failed_to_start(info: JsonRow) -> bool:
    return not info["attempts"] and info["status"] in ("failed", "interrupted")


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def _git_version() -> str | None:
    """`git describe` of the source, where it is a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
