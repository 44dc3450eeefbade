"""Which files of a folder are audio: one answer for data sets, scored folders and inputs.

Hidden files are passed over (`._a.wav` of macOS, `.ipynb_checkpoints/`), and so are formats that
are not read; how many is reported. Formats that the program `ffmpeg` decodes belong to the files
with and without it, so that a data set does not depend on it. No torch.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stagecli.data import ffmpeg
from stagecli.data.audio_checks import check_content, is_silent
from stagecli.data.decoding import AudioInfo, file_problem
from stagecli.data.text_files import text_problem
from stagecli.errors import Problem, StageError, among, counted

SUFFIXES = ffmpeg.SUFFIXES | {
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf", ".au")
}
# Video, formats without a header, and rare ones.
OTHER_AUDIO = frozenset(
    {
        *(".3gp", ".alac", ".gsm", ".mkv", ".mov", ".mp2", ".mp4", ".pcm", ".ra", ".raw", ".snd"),
        *(".sph", ".spx", ".voc", ".w64", ".webm"),
    }
)


@dataclass(frozen=True)
class AudioFolder:
    """The audio files of a folder and its subfolders, in a stable order, relative to it.

    passed_over: how many other files look like audio, and why they are not used.
    """

    files: list[Path]
    passed_over: list[str]


def list_audio(root: Path) -> AudioFolder:
    """The audio files under a folder; linked folders are followed once.

    Raises StageError: no such folder, a folder that cannot be read, no audio files.
    """
    problem = folder_problem(root)
    if problem:
        raise StageError(
            "cannot read the folder", problems=[Problem(str(root), problem)], hint="check the path"
        )

    # Every file by what becomes of it.
    files = []
    hidden = 0
    others: Counter[str] = Counter()
    try:
        for file in _walk(root):
            suffix = file.suffix.lower()
            if suffix in OTHER_AUDIO:
                others[suffix] += 1
            elif suffix in SUFFIXES and any(name.startswith(".") for name in file.parts):
                hidden += 1
            elif suffix in SUFFIXES:
                files.append(file)
    except OSError as error:
        where = str(error.filename or root)
        raise StageError(
            "cannot read the folder", problems=[Problem(where, file_problem(error))]
        ) from error

    # What is passed over, in words.
    passed_over = [
        f"{counted(count, f'{suffix} file is', f'{suffix} files are')} passed over: that format "
        "is not read from folders; convert to .flac"
        for suffix, count in sorted(others.items())
    ]
    if hidden:
        passed_over.append(
            f"{counted(hidden, 'hidden audio file is', 'hidden audio files are')} passed over: "
            "names start with a dot"
        )
    if not files:
        raise StageError(
            f"{root}: no audio files",
            problems=[Problem(str(root), line) for line in passed_over],
            hint=f"known endings: {' '.join(sorted(SUFFIXES))}",
        )
    return AudioFolder(files, passed_over)


def find_audio(
    source: Path,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    *,
    skip_bad: bool = False,
) -> dict[Path, AudioInfo]:
    """`source` if it is a file, or every audio file under a folder, sorted, with its format.

    Each file is decoded once, block by block; silent files are allowed. warn: receives what is
    passed over; progress: (files checked, files); skip_bad: a file that cannot be used is passed
    over too, unless it is the only one. Raises StageError listing every file that cannot be used.
    """
    files = [source]
    if folder_problem(source) is None:
        folder = list_audio(source)
        files = sorted(source / file for file in folder.files)
        for line in folder.passed_over:
            warn(f"{source}: {line}")
    headers = {}
    problems = []
    for done, path in enumerate(files, 1):
        if progress:
            progress(done, len(files))
        info, problem = _check_input(path)
        if info is not None and (problem is None or is_silent(problem)):
            headers[path] = info
        else:
            problems.append(Problem(str(path), problem or "cannot be decoded"))
    if problems and not (skip_bad and headers):
        raise StageError(
            f"{among(len(problems), len(files), 'input file')} cannot be used", problems=problems
        )
    for bad in problems:
        warn(f"{bad.where}: skipped: {bad.what}")
    return headers


def folder_problem(path: Path) -> str | None:
    """Why `path` is no folder, or None."""
    try:
        os.stat(path)
        return None if path.is_dir() else "is not a folder"
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else file_problem(error)
    except ValueError as error:  # NUL in the path
        return f"cannot be read: {error}"


def existing_name(folder: Path, name: str) -> Path:
    """`folder / name`, or the one file there whose name differs only in Unicode normalisation.

    macOS writes "é" as two characters, other systems as one, and archives keep either. Where
    several files fit, or none, `folder / name` is returned, which does not exist.
    """
    path = folder / name
    if name.isascii() or os.path.lexists(path):
        return path
    current = Path(path.anchor) if path.is_absolute() else Path()
    for word in path.parts[len(current.parts) :]:
        exact = current / word
        if word.isascii() or os.path.lexists(exact):
            current = exact
            continue
        matches = [entry for entry in _entries(current) if composed(entry) == composed(word)]
        if len(matches) != 1:
            return path
        current = current / matches[0]
    return current


def composed(name: str) -> str:
    """The name in Unicode normal form C, which is one for all spellings of an accented letter."""
    return unicodedata.normalize("NFC", name)


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _check_input(path: Path) -> tuple[AudioInfo | None, str | None]:
    problem = text_problem(str(path))
    if problem:
        return None, f"its name {problem}: rename it"
    try:
        return check_content(path)
    except OSError as error:
        return None, file_problem(error)


def _walk(root: Path) -> Iterator[Path]:
    """All files under `root`, sorted, relative to it. Raises OSError for an unreadable folder."""

    def refuse(error: OSError) -> None:
        raise error

    visited = set()
    for folder, children, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in visited:
            children.clear()
            continue
        visited.add(real)
        children.sort()
        for name in sorted(files):
            yield Path(folder, name).relative_to(root)
