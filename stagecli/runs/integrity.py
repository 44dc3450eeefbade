"""Whether the files of a checkpoint are what was written: SHA-256 sums, checked at load. No torch.

`sha256sum -c sha256sums.txt` in the folder of a checkpoint checks the same. Checkpoints of earlier
versions have no sums; of these the form of each file is checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import JsonRow, parse_json, write_atomic
from stagecli.report.rows import LARGEST_STEP

SUMS = "sha256sums.txt"
STATE = "state.json"
RESUMES = ("model.safetensors", "ema.safetensors", "trainer.safetensors", STATE)
"""Files that a resume reads."""
GENERATES = ("ema.safetensors", STATE)
"""Files that sampling and scoring read."""
OPTIONAL = ("codec.safetensors", "recipe.toml")
"""Files that checkpoints have had since a later version; checked where there are sums."""
SUM_LINE = re.compile(r"([0-9a-f]{64})  ([\w./-]+)")

Warn = Callable[[str], object]
"""Prints or records one line."""


@dataclass(frozen=True)
class Choice:
    """A checkpoint that is whole, and why each newer one is not: (path, reason)."""

    path: Path
    passed_over: Sequence[tuple[Path, str]] = ()


def name_of(step: int) -> str:
    """Directory name of a checkpoint."""
    return f"step_{step:08d}"


def folders(folder: Path) -> dict[int, Path]:
    """Step -> directory of every checkpoint under `folder`, whole or not; the newest first.

    Links to elsewhere are none. Raises StageError where the folder itself leads out of its run.
    """
    home = folder.resolve()
    if not home.is_relative_to(folder.parent.resolve()):
        raise StageError(
            f"{folder} is a link that leads out of the run",
            hint="move its target into the run; to train on another disk, use --runs-dir there",
        )
    steps = {
        int(path.name[5:]): path
        for path in folder.glob("step_*")
        if re.fullmatch("step_[0-9]{8,13}", path.name)
        and path.is_dir()
        and (path / STATE).resolve() == home / path.name / STATE
    }
    return dict(sorted(steps.items(), reverse=True))


def write_sums(folder: Path) -> None:
    """Write the sums of all files in `folder`. Raises OSError."""
    write_atomic(folder / SUMS, sums_text(folder, sorted(path.name for path in folder.iterdir())))


def sums_text(folder: Path, names: Iterable[str]) -> str:
    """The content of the file of sums for some files of a folder. Raises OSError."""
    return "".join(f"{sum_of(folder / name)}  {name}\n" for name in names)


def damage(folder: Path, needed: Sequence[str] = RESUMES) -> str | None:
    """Why the checkpoint in `folder` cannot be used; None where the needed files are whole."""
    try:
        if not (folder / SUMS).exists():
            for name in needed:
                _check_form(folder / name)
            return None
        problem = changed_file(folder, (*needed, *OPTIONAL))
        if problem is None:
            read_state(folder)
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    return problem


def changed_file(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """The first of the files that is not what its sum says; None where all are.

    names: default: every file that has a sum. Raises OSError, and ValueError for damaged sums.
    """
    sums = _read_sums(folder / SUMS)
    for name in sums if names is None else names:
        if name not in sums:
            return f"{SUMS} has no line for {name}"
        if sum_of(folder / name) != sums[name]:
            return f"{name} has changed since it was written"
    return None


def newest_whole(folder: Path, needed: Sequence[str] = RESUMES) -> Choice | None:
    """The newest checkpoint under `folder` that is whole; None where there is no checkpoint.

    Raises StageError where there are some and none is whole.
    """
    passed_over: list[tuple[Path, str]] = []
    for path in folders(folder).values():
        reason = damage(path, needed)
        if reason is None:
            return Choice(path, passed_over)
        passed_over.append((path, reason))
    if not any((path / STATE).exists() for path, _ in passed_over):
        return None
    raise StageError(
        f"no checkpoint under {folder} is whole",
        problems=[Problem(str(path), reason) for path, reason in passed_over],
        hint="restore one from a backup, or train again: --restart moves the run aside",
        exit_code=EXIT_FAILED,
    )


def read_state(folder: Path) -> JsonRow:
    """state.json of a checkpoint. Raises OSError, and ValueError with what is wrong in it."""
    try:
        state = parse_json((folder / STATE).read_bytes(), keep_nan=True)
    except ValueError as error:
        raise ValueError(f"{STATE}: {error}") from None
    if not isinstance(state, dict) or "trainer" not in state:
        raise ValueError(f"{STATE}: not the state of a checkpoint")
    step = state.get("step")
    if type(step) is not int or not 0 <= step <= LARGEST_STEP or name_of(step) != folder.name:
        raise ValueError(f"{STATE}: `step` is not that of {folder.name}")
    best = state.get("best")
    if best is not None and not (isinstance(best, dict) and type(best.get("step")) is int):
        raise ValueError(f"{STATE}: `best` is not a checkpoint")
    return state


def sum_of(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(path: Path) -> dict[str, str]:
    sums = {}
    for line in path.read_bytes().decode("ascii", "replace").rstrip("\n").split("\n"):
        match = SUM_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{SUMS} is damaged")
        sums[match[2]] = match[1]
    return sums


def _check_form(path: Path) -> None:
    """Raise ValueError or OSError where a file does not even have its form."""
    if path.name == STATE:
        read_state(path.parent)
        return
    from safetensors import SafetensorError, safe_open

    with path.open("rb"):
        pass
    try:
        with safe_open(path, framework="numpy") as tensors:
            tensors.keys()
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None
