"""Which shards `data.path` names: folders, patterns such as `train-{000..099}.tar`, lists."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from pathlib import Path

from stagecli.data import remote
from stagecli.data.finding import folder_problem
from stagecli.data.remote import is_remote
from stagecli.errors import Problem, StageError

BETWEEN = "::"  # between several paths, as in WebDataset
MOST = 1_000_000  # shards that one pattern may name
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def shard_paths(path: str, base: Path) -> list[str]:
    """The shards that `data.path` names, in order; each of them exists.

    base: folder that relative paths start from. Raises StageError with every problem: nothing
    there, a missing shard, a shard that is named twice.
    """
    shards: list[str] = []
    problems: list[Problem] = []
    for part in path.split(BETWEEN):
        for pattern in expanded(part.strip()):
            location = pattern
            if not is_remote(pattern):
                location = str(base / os.path.expanduser(pattern))
            matches, problem = _remote(location) if is_remote(location) else _local(location)
            shards += matches
            if problem:
                problems.append(Problem(pattern, problem))
    counts = Counter(shards)
    problems += [Problem(shard, "is named twice") for shard in counts if counts[shard] > 1]
    if problems:
        raise StageError(
            f"data.path: {len(problems)} of its shards cannot be used",
            problems=problems,
            hint='name tar files in data.path: a folder, "train-{000..099}.tar", or a list',
        )
    return shards


def holds_shards(folder: Path) -> bool:
    """Whether a folder holds tar files."""
    return next(folder.glob("*.tar"), None) is not None


def expanded(pattern: str) -> list[str]:
    """A pattern without its braces: `{000..099}` counts, `{train,valid}` lists.

    Raises StageError for a range that runs backwards or too far.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    words = match[1].split(",")
    numbers = _RANGE.fullmatch(match[1])
    if numbers:
        first, last = numbers.groups()
        count = int(last) - int(first) + 1
        if not 1 <= count <= MOST:
            raise StageError(
                "data.path: a range of shards cannot be meant",
                problems=[Problem(match[0], f"names {max(0, count):,} shards")],
                hint="write it as {000..099}",
            )
        words = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    rest = expanded(pattern[match.end() :])
    return [f"{pattern[: match.start()]}{word}{end}" for word in words for end in rest]


def _local(location: str) -> tuple[list[str], str | None]:
    """The shards at one place, and why there are none."""
    if folder_problem(Path(location)) is None:
        return _tars([str(file) for file in Path(location).rglob("*") if file.is_file()])
    if glob.has_magic(location):
        shards = sorted(glob.glob(location, recursive=True))
        return shards, None if shards else "matches no file"
    if not os.path.exists(location):
        return [], "is missing"
    return [location], None


def _remote(location: str) -> tuple[list[str], str | None]:
    """As `_local`, at an address. A single shard is looked for when it is opened."""
    if location.endswith(".tar") and not glob.has_magic(location):
        return [location], None
    try:
        files = remote.listed(location)
    except FileNotFoundError:
        return [], "is missing"
    if glob.has_magic(location):
        return files, None if files else "matches no file"
    return _tars(files) if files else ([], "is missing")


def _tars(files: list[str]) -> tuple[list[str], str | None]:
    """The shards of a folder, and why they cannot be used."""
    shards = sorted(file for file in files if file.endswith(".tar"))
    compressed = sorted(file for file in files if file.endswith(COMPRESSED))
    if compressed:
        return [], f"holds compressed shards, such as {compressed[0]}: decompress them"
    return shards, None if shards else "holds no .tar file"
