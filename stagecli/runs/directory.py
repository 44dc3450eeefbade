"""The run directory: names, atomic writes, JSONL, attempts, resume, environment. No torch.

runs/<name>/  recipe.toml (resolved; runnable)  run.json  environment.json
  metrics.jsonl  bins.jsonl  events.jsonl  probes.jsonl     flat rows: step, time, attempt, ...
  codec.safetensors                                         statistics of the training set
  checkpoints/step_00010000/  latest (text pointer)         see checkpoint.py
  samples/  evals/  logs/attempt_1/
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
from typing import Any

from stagecli import __version__
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import finite, write_atomic
from stagecli.recipe.dump import dump_recipe
from stagecli.recipe.load import load_from_run
from stagecli.recipe.signature import flatten, signature, signed_keys
from stagecli.schema import Recipe

SCHEMA = 1
STREAMS = ("metrics", "bins", "events", "probes")
# What scores while training are measured with, besides the weights.
MEASURED_WITH = (
    "train.validate_clips",
    "train.validate_t",
    "train.evaluate_clips",
    "train.evaluate_steps",
    "evaluate.",
)
UNSCORED = (
    "evaluate.batch_size",
    "evaluate.samples",
)  # of `evaluate` alone, or without an effect on a score


def environment() -> dict[str, Any]:
    """Python, machine and package versions; the same content as `doctor --json`."""
    packages: dict[str, str | None] = {}
    for name in (
        "torch",
        "torchaudio",
        "accelerate",
        "transformers",
        "safetensors",
        "soundfile",
        "numpy",
        "scipy",
    ):
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


def _git() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """One run directory, open for writing by the main process."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        self.measured_otherwise: list[
            str
        ] = []  # "key: before -> now", of what scores are measured with
        self._files: dict[str, Any] = {}

    @property
    def attempt(self) -> int:
        return len(self.info["attempts"])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def save_info(self, **changes: Any) -> None:
        self.info.update(changes)
        write_atomic(self.path / "run.json", json.dumps(finite(self.info), indent=1))

    def append(self, stream: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Add one row to a JSONL stream with time and attempt; the row as written comes back."""
        full = finite(
            {"step": row["step"], "time": round(time.time(), 3), "attempt": self.attempt, **row}
        )
        file = self._files.get(stream)
        if file is None:
            path = self.path / f"{stream}.jsonl"
            _end_line(path)
            file = self._files[stream] = path.open("a", encoding="utf-8", buffering=1)
        file.write(json.dumps(full) + "\n")
        return full

    def begin_attempt(self, from_step: int, argv: Sequence[str]) -> None:
        attempt = {
            "attempt": self.attempt + 1,
            "from_step": from_step,
            "started": _now(),
            "ended": None,
        }
        self.info["attempts"].append(
            {**attempt, "status": "running", "argv": list(argv), "pid": os.getpid()}
        )
        self.save_info(status="running", message=None)
        write_atomic(self.path / "environment.json", json.dumps(environment(), indent=1))

    def end_attempt(self, status: str, message: str | None = None) -> None:
        self.info["attempts"][-1].update(ended=_now(), status=status)
        self.save_info(status=status, message=message)
        for file in self._files.values():
            file.close()
        self._files.clear()


def _end_line(path: Path) -> None:
    """A process that was killed mid-line leaves half a row: end it, so that the next row stands alone."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def read_info(path: Path) -> dict[str, Any]:
    """run.json of a run directory. Raises StageError where there is none."""
    try:
        return json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StageError(
            f"not a run directory: {path}",
            problems=[Problem(str(path / "run.json"), str(error))],
            hint="give a directory made by `stagecli train`, such as runs/quickstart",
        ) from error


def open_run(
    recipe: Recipe,
    folder: Path,
    *,
    argv: Sequence[str],
    overrides: Sequence[str],
    restart: bool = False,
) -> Run:
    """Create the run directory, or open it to resume.

    Raises StageError where the directory holds a run of another recipe (with the difference and
    the ways out), a run that another process is writing, or cannot be written.
    """
    info_path = folder / "run.json"
    if restart and info_path.exists():
        _nobody_writes(
            folder, read_info(folder)
        )  # it would write its next checkpoint into the new run
        aside = next(
            p
            for i in range(1, 10_000)
            if not (p := folder.with_name(f"{folder.name}.old-{i}")).exists()
        )
        folder.rename(aside)
    # A start that failed before its first step (bad data, say) is not in the way of a corrected recipe.
    began = info_path.exists() and not _failed_to_start(read_info(folder))
    if began:
        info = read_info(folder)
        _same_recipe(recipe, folder, info)
        _nobody_writes(folder, info)
        info["steps"] = recipe.train.steps
    elif (
        not info_path.exists()
        and folder.is_dir()
        and any(path.is_file() for path in folder.rglob("*"))
    ):
        raise StageError(
            f"{folder} exists and is no run",
            hint="choose another directory with --name or --runs-dir; nothing is ever deleted",
        )
    else:
        info = _new_info(recipe, folder, argv, overrides)
    run = Run(folder, info)
    if began and (folder / "recipe.toml").exists():
        run.measured_otherwise = _measured_otherwise(load_from_run(folder / "recipe.toml"), recipe)
    try:
        for name in ("checkpoints", "samples", "evals", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not began:
            (folder / "codec.safetensors").unlink(
                missing_ok=True
            )  # statistics of a start that led nowhere
        run.save_info()  # first, as it makes the directory a run: a kill in between leaves nothing in the way
        write_atomic(folder / "recipe.toml", dump_recipe(recipe))
    except OSError as error:
        raise StageError(
            f"cannot write the run directory {folder}",
            problems=[Problem(str(folder), error.strerror or str(error))],
            hint="choose a writable place with --runs-dir",
        ) from error
    return run


def _failed_to_start(info: dict[str, Any]) -> bool:
    return not info["attempts"] and info["status"] in ("failed", "interrupted")


def _new_info(
    recipe: Recipe, folder: Path, argv: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
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
        "git": _git(),
        "created": _now(),
        "attempts": [],
        "best": None,
        "message": None,
    }


def _same_recipe(recipe: Recipe, folder: Path, info: dict[str, Any]) -> None:
    if info["signature"] == signature(recipe):
        return
    before = signed_keys(load_from_run(folder / "recipe.toml"))
    after = signed_keys(recipe)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if not changed:  # signed by an earlier version, under which a key had another name
        return
    raise StageError(
        f"{folder} holds a run of a different recipe",
        problems=[
            Problem(k, f"{before.get(k)!r} in the run, {after.get(k)!r} now") for k in changed
        ],
        hint="train under another name with --name, or with --restart, which moves the old run aside",
    )


def _measured_otherwise(before: Recipe, now: Recipe) -> list[str]:
    old = flatten(before)
    new = flatten(now)
    keys = [key for key in new if key.startswith(MEASURED_WITH) and key not in UNSCORED]
    return [f"{key}: {old.get(key)!r} -> {new[key]!r}" for key in keys if old.get(key) != new[key]]


def _nobody_writes(folder: Path, info: dict[str, Any]) -> None:
    attempt = info["attempts"][-1] if info["attempts"] else None
    if not attempt or attempt["status"] != "running" or attempt["pid"] == os.getpid():
        return
    try:
        command = Path(f"/proc/{attempt['pid']}/cmdline").read_bytes()
    except OSError:
        return  # killed: the resume picks up from its last checkpoint
    if b"stagecli" in command:
        raise StageError(
            f"{folder} is being written by process {attempt['pid']}",
            hint="wait for it or stop it first; `stagecli inspect-regime` can watch it",
            exit_code=EXIT_FAILED,
        )


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`."""
    return shutil.disk_usage(path).free


def newest(runs_dir: Path, task: str | None = None, finished: bool = True) -> Path:
    """The newest (finished) run of a task under `runs_dir`. Raises StageError where there is none."""
    found = []
    for path in runs_dir.glob("*/run.json"):
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if (task is None or info.get("task") == task) and (
            not finished or info.get("status") == "finished"
        ):
            found.append((path.stat().st_mtime, path.parent))
    if not found:
        kind = f"{'finished ' if finished else ''}{task or ''} run".replace("  ", " ")
        raise StageError(
            f"no {kind} under {runs_dir}/",
            hint="name a run directory, or train one: `stagecli train quickstart`",
        )
    return max(found)[1]


def command_line() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
