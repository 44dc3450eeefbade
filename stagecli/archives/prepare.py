"""An extracted archive becomes the manifest that recipes read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagecli.archives.captioned import read_audiocaps, read_clotho
from stagecli.archives.catalogue import ARCHIVES
from stagecli.archives.contents import Contents, Row
from stagecli.archives.esc import read_esc10, read_esc50
from stagecli.archives.fsdd import read_fsdd
from stagecli.archives.speech import read_librispeech, read_vctk
from stagecli.data.finding import folder_problem
from stagecli.data.rows import SPLITS
from stagecli.errors import Problem, StageError
from stagecli.files import json_line

READERS: dict[str, Callable[[Path], Contents]] = {
    "fsdd": read_fsdd,
    "esc10": read_esc10,
    "esc50": read_esc50,
    "audiocaps": read_audiocaps,
    "clotho": read_clotho,
    "vctk": read_vctk,
    "librispeech": read_librispeech,
}


def read_archive(name: str, folder: Path, *, skip_missing: bool) -> Contents:
    """The clips of an extracted archive, in the order of their paths.

    skip_missing: leave out what the archive should hold and does not; it stays in `gaps`. Raises
    StageError with everything that is wrong.
    """
    if problem := folder_problem(folder):
        raise StageError(
            f"cannot read the archive of {name}",
            problems=[Problem(str(folder), problem)],
            hint="name the folder into which the archive was extracted",
        )
    contents = READERS[name](folder)
    contents.rows.sort(key=lambda row: row.path)
    archive = ARCHIVES[name]
    counts = split_counts(contents)
    for split in SPLITS:
        if contents.rows and not counts[split]:
            problem = f"no clips for the split {split}: {archive.splits[split]}"
            contents.gaps.append(Problem(str(folder), problem))
    if not contents.rows and not contents.problems:
        contents.problems.append(Problem(str(folder), "holds no clips"))
    wrong = contents.problems + ([] if skip_missing and contents.rows else contents.gaps)
    if wrong:
        hint = f"extract the whole archive; expected: {archive.holds}"
        if not contents.problems and contents.rows:
            hint += "; or leave out what is missing: --skip-missing"
        raise StageError(f"the archive of {name} is not whole", problems=wrong, hint=hint)
    return contents


def split_counts(contents: Contents) -> Counter[str]:
    """The number of clips of each split."""
    return Counter(row.split for row in contents.rows)


def manifest_text(contents: Contents, manifest: Path) -> str:
    """The lines of a manifest at the path `manifest`, from which paths of clips are relative."""
    return "".join(json_line(_manifest_row(row, manifest.parent)) for row in contents.rows)


def _manifest_row(row: Row, base: Path) -> dict[str, Any]:
    if row.path.is_relative_to(base):
        path = row.path.relative_to(base)
    else:  # the way up from a folder that is a link is that of what it leads to
        folder = os.path.relpath(os.path.realpath(row.path.parent), os.path.realpath(base))
        path = Path(folder, row.path.name)
    captions: dict[str, Any] = {}
    if row.captions:
        captions["caption"] = row.captions[0] if len(row.captions) == 1 else list(row.captions)
    return {"path": path.as_posix(), **captions, **row.labels, "split": row.split}
