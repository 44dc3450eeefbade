"""The run directory: its files, rows and attempts. No torch.

runs/<name>/  recipe.toml (resolved; runnable)  run.json  environment.json  .lock
  metrics.jsonl  bins.jsonl  events.jsonl  probes.jsonl     flat rows: step, time, attempt, ...
  codec.safetensors                                         statistics of the training set
  data.json                                                 report on the data, fingerprint
  checkpoints/step_00010000/  latest (text pointer)         see checkpoint.py
  samples/  evals/
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from stagecli import __version__
from stagecli.errors import Problem, StageError
from stagecli.files import (
    JsonRow,
    append_json_lines,
    finite,
    name_problem,
    sealed,
    write_json,
)
from stagecli.report.run_info import SCHEMA, read_info_file
from stagecli.runs.integrity import folders
from stagecli.runs.lock import RunLock
from stagecli.schema import Recipe

REQUIRED = ("task", "status", "attempts", "signature")  # in run.json, to resume or evaluate
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


@dataclass(frozen=True)
class Notice:
    """Something special about an attempt that becomes an event: `after` in a word, and why."""

    after: str
    reason: str
    evidence: JsonRow = field(default_factory=dict)


class Run:
    """One run directory, locked and open for writing by the main process; `close` unlocks it.

    info: the content of run.json; before: the recipe that the last attempt trained, if it can be
    read; notices: what the events of this attempt have to report about its start.
    """

    def __init__(
        self,
        path: Path,
        info: JsonRow,
        lock: RunLock,
        *,
        before: Recipe | None = None,
        notices: Sequence[Notice] = (),
    ) -> None:
        self.path = path
        self.info = info
        self.lock = lock
        self.before = before
        self.notices = list(notices)

    def close(self) -> None:
        """Let other processes write the run."""
        self.lock.release()

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
        write_json(self.path / "run.json", sealed(self.info))

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
                "started": now(),
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
        self.info["attempts"][-1].update(ended=now(), status=status)
        self.save_info(status=status, message=message)


def is_run(folder: Path) -> bool:
    """Whether a directory holds a run, damaged or not."""
    return (folder / "run.json").exists() or (
        (folder / "recipe.toml").exists() and bool(folders(folder / "checkpoints"))
    )


def run_folder(runs_dir: Path, name: str, source: str) -> Path:
    """The directory of the run `name`, directly under `runs_dir`.

    source: where the name comes from. Raises StageError for names that cannot be used.
    """
    problem = name_problem(name)
    if problem:
        raise StageError(
            f"the run cannot be named {name!r}",
            problems=[Problem(source, f"the name of a run {problem}")],
            hint="give another one with --name; --runs-dir says where runs are kept",
        )
    return runs_dir / name


def read_info(path: Path) -> JsonRow:
    """run.json of a run directory. Raises StageError where there is none, or it is damaged."""
    file = path / "run.json"
    try:
        info, problems = read_info_file(file)
    except OSError as error:
        raise StageError(
            f"not a run directory: {path}",
            problems=[Problem(str(file), error.strerror or str(error))],
            hint="give a directory made by `stagecli train`, such as runs/quickstart",
        ) from error
    problems += [f"run.json: `{key}` is missing" for key in REQUIRED if key not in info]
    if info.get("schema", SCHEMA) > SCHEMA:
        problems = [f"run.json: has schema {info['schema']}, which a newer version writes"]
    if problems:
        raise StageError(
            f"the run {path} is damaged",
            problems=[Problem(str(file), text.partition(": ")[2]) for text in problems],
            hint="`stagecli train` with the run's recipe makes it again from the checkpoints; "
            "--restart moves the run aside and starts over",
        )
    return info


def newest(runs_dir: Path, task: str | None = None, finished: bool = True) -> Path:
    """The newest (finished) run of a task under `runs_dir`. Raises StageError if there is none."""
    matches = []
    for path in runs_dir.glob("*/run.json"):
        try:
            info, _ = read_info_file(path)
        except OSError:
            continue
        right_task = "status" in info and task in (None, info.get("task"))
        if right_task and (not finished or info.get("status") == "finished"):
            matches.append((path.stat().st_mtime, path.parent))
    if not matches:
        words = ["finished" if finished else "", task or "", "run"]
        raise StageError(
            f"no {' '.join(filter(None, words))} under {runs_dir}/",
            hint="name a run directory, or train one: `stagecli train quickstart`",
        )
    return max(matches)[1]


def free_name(path: Path, word: str) -> Path:
    """The first of NAME.word-1, NAME.word-2, ... that is free."""
    number = 1
    while (renamed := path.with_name(f"{path.name}.{word}-{number}")).exists():
        number += 1
    return renamed


def move_aside(path: Path) -> Path:
    """Rename a run or a checkpoint to the first free NAME.old-1, NAME.old-2, ... Raises OSError."""
    return path.rename(free_name(path, "old"))


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


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
