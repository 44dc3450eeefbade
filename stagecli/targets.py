"""Files that the user named to be written: planned before the work, written whole at its end.

A run's own files are written with `files.py`; it replaces whatever has the name. Here a name may
also be that of an input, of a recording, of a link or of a device. No torch.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import atomic_path

MAX_LISTED = 20  # problems that are named
EXISTS = "exists"
# In an input folder only files of these kinds can be results of an earlier call.
REPORT_SUFFIXES = frozenset({".csv", ".html", ".svg", ".png", ".pdf"})
# Names of files that this process has open already: to be continued, not replaced.
OPEN_FILES = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


@dataclass(frozen=True)
class Target:
    """A file to be written; origin: the flag or the input that it comes from, as typed."""

    path: Path
    origin: str


def plan_targets(
    targets: Sequence[Target],
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
    make_folders: bool = False,
) -> None:
    """Raise StageError, listing every problem, unless all targets can be written without harm.

    Every target must be a file of its own, also where names ignore case or the form of accents; no
    input, by whatever name; and must not exist, unless `force`. inputs: files, or folders whose
    files are inputs, except reports that an earlier call may have left there. make_folders: missing
    folders are allowed. Nothing is written.
    """
    originals = _Originals(inputs)
    collisions = _collisions(targets)
    problems = list(collisions)
    for target in targets:
        problem = originals.problem(target.path) or _problem(target.path, force, make_folders)
        if problem:
            problems.append(Problem(str(target.path), problem))
    if not problems:
        return
    hint = "choose another output"
    if collisions:
        hint = "give each an output of its own: other names, or one call for each"
    elif all(problem.what == EXISTS for problem in problems):
        hint = "choose another output, or --force to replace what exists"
    message = "the output cannot be written; nothing was changed"
    if len(problems) == 1 and not collisions:
        message = f"{problems[0].where} {problems[0].what}"
        problems = []
    raise StageError(message, problems=_first(problems), hint=hint)


def write_target(
    path: Path, content: str | bytes | Iterable[bytes], *, force: bool = False
) -> None:
    """Write `content` (text as UTF-8, or pieces of it) to a planned target, whole or not at all.

    A link is followed and stays one. A device or FIFO is opened in place. Missing folders are
    created; a file that exists keeps its permissions, and is replaced only with `force`. Raises
    StageError (exit code 1).
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    pieces: Iterable[bytes] = [data] if isinstance(data, bytes) else data
    try:
        if _is_open_file(path) or (path.exists() and not path.is_file()):
            with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
                stream.writelines(pieces)
            return
        real = Path(os.path.realpath(path))
        if not force and real.exists():  # appeared while the command worked
            raise FileExistsError(None, EXISTS)
        real.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(real) as partial:
            with partial.open("wb") as stream:
                stream.writelines(pieces)
            if real.exists():
                partial.chmod(stat.S_IMODE(real.stat().st_mode))
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StageError:
    """The error of a file that the user named and that cannot be written."""
    return StageError(
        f"cannot write {path}: {error.strerror or error}",
        hint="free some space, or choose another place",
        exit_code=EXIT_FAILED,
    )


class _Originals:
    """The inputs of a command, recognised under any name."""

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._names: dict[tuple[int, int], Path] = {}
        self._folders: list[tuple[Path, Path]] = []
        for path in inputs:
            status = _stat(path)
            if status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                self._folders.append((path, Path(os.path.realpath(path))))
            elif stat.S_ISREG(status.st_mode):
                self._names[status.st_dev, status.st_ino] = path

    def problem(self, path: Path) -> str | None:
        """The problem if an existing file is an input."""
        status = _stat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        name = self._names.get((status.st_dev, status.st_ino))
        if name is not None:
            return f"is the input {name}" if name != path else "is an input"
        real = Path(os.path.realpath(path))
        for folder, real_folder in self._folders:
            if real.suffix.lower() not in REPORT_SUFFIXES and real.is_relative_to(real_folder):
                return f"is a file of {folder}, which is an input"
        return None


def _collisions(targets: Sequence[Target]) -> list[Problem]:
    """Targets that are one file, or of which one would have to be a folder of another."""
    by_key: dict[PurePath, list[Target]] = defaultdict(list)
    for target in targets:
        if not _is_special(target.path):
            by_key[_key(target.path)].append(target)
    problems = []
    for key, same in by_key.items():
        if len(same) > 1:
            origins = ", ".join(target.origin for target in same)
            problems.append(Problem(str(same[0].path), f"would be the result of each of {origins}"))
        above = next((parent for parent in key.parents if parent in by_key), None)
        if above is not None:
            other = by_key[above][0]
            problems.append(Problem(str(same[0].path), f"would be inside the file {other.path}"))
    return problems


def _key(path: Path) -> PurePath:
    """Equal for names that are one file on some file system."""
    real = os.path.realpath(path)
    folded = unicodedata.normalize("NFC", real).casefold()
    return PurePath(unicodedata.normalize("NFC", folded))


def _problem(path: Path, force: bool, make_folders: bool) -> str | None:
    """Why a file could not be written, from its state and that of its folder."""
    if _is_open_file(path):
        return None
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _folder_problem(Path(os.path.realpath(path)).parent, make_folders)
    except OSError as error:
        return error.strerror
    if stat.S_ISDIR(mode):
        return "is a folder"
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        return "is a block device or a socket"
    if stat.S_ISREG(mode) and not force:
        return EXISTS
    return None if os.access(path, os.W_OK) else "may not be written"


def _folder_problem(folder: Path, make_folders: bool) -> str | None:
    """Why no file can be created in `folder`, or None."""
    if not folder.exists() and not make_folders:
        return "its folder does not exist"
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written to"


def _is_open_file(path: Path) -> bool:
    return os.path.abspath(path).startswith(OPEN_FILES)


def _is_special(path: Path) -> bool:
    """Whether the path is no file that is replaced: a device, a FIFO, an open file."""
    status = _stat(path)
    special = status is not None and not stat.S_ISREG(status.st_mode)
    return special or _is_open_file(path)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _first(problems: Sequence[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    more = len(problems) - MAX_LISTED
    rest = [Problem("...", f"and {more} more")] if more > 0 else []
    return [*problems[:MAX_LISTED], *rest]
