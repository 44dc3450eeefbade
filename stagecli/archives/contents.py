"""What an extracted archive holds: the rows of its manifest, and what is wrong or missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecli.data.csv_rows import Columns, CsvRow, csv_rows
from stagecli.data.finding import list_audio
from stagecli.data.rows import Split
from stagecli.data.text_files import require_text
from stagecli.errors import Problem, StageError, among

NAMED = 3  # missing files that are named


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clip: its file, its split, its captions (none where the archive has none) and labels."""

    path: Path
    split: Split
    captions: Sequence[str] = ()
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Contents:
    """rows: one a clip; problems: what makes the archive unusable; gaps: what it should hold and
    does not, which may be left out; notices: what is passed over on purpose, in sentences.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    gaps: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def lacks(self, place: Path, names: Sequence[str], total: int, noun: str, verb: str) -> None:
        """Note that `names` of a total lack something: "2 of 9 rows have no file: a, b"."""
        if not names:
            return
        more = ", ..." if len(names) > NAMED else ""
        what = f"{among(len(names), total, noun)} {verb}: {', '.join(names[:NAMED])}{more}"
        self.gaps.append(Problem(str(place), what))


def root_of(folder: Path, marker: str) -> Path:
    """The folder that holds `marker`: the one named, or the only one in it that does.

    Archives hold one folder at their top, such as ESC-50-master. Without any, `folder` itself.
    """
    if (folder / marker).exists():
        return folder
    inner = [path for path in folder.glob("*") if (path / marker).exists()]
    return inner[0] if len(inner) == 1 else folder


def require_folder(contents: Contents, folder: Path) -> bool:
    """Whether `folder` is one; if not, that is a problem of the archive."""
    if folder.is_dir():
        return True
    contents.problems.append(Problem(str(folder), "the folder is missing"))
    return False


def audio_under(contents: Contents, folder: Path) -> list[Path]:
    """The audio files under a folder of the archive, sorted; what is passed over is noted."""
    if not require_folder(contents, folder):
        return []
    try:
        listing = list_audio(folder)
    except StageError as error:
        contents.problems.append(Problem(str(folder), "holds no audio files"))
        contents.notices += [problem.what for problem in error.problems]
        return []
    contents.notices += listing.passed_over
    return sorted(folder / file for file in listing.files)


def table_rows(contents: Contents, path: Path, columns: Sequence[str]) -> list[CsvRow]:
    """The rows of a CSV file of the archive that can be read; others are problems of it.

    columns: those that it must have, the one that names files first.
    """
    try:
        text = require_text(path, "cannot be read")
        rows = list(csv_rows(path, text, Columns(path=columns[0], caption=None)))
    except StageError as error:
        reasons = "; ".join(problem.what for problem in error.problems)
        contents.problems.append(Problem(str(path), f"{error.message}: {reasons}"))
        return []
    contents.problems += [
        Problem(f"{path}:{row.number}", row.problem, row.excerpt) for row in rows if row.problem
    ]
    readable = [row for row in rows if row.columns is not None]
    lacking = [name for row in readable[:1] for name in columns if name not in (row.columns or ())]
    if lacking:
        contents.problems.append(Problem(f"{path}:1", f"has no column {', '.join(lacking)}"))
        return []
    return readable
