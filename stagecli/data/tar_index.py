"""Where the clips of a tar shard lie: its index, made by reading the headers once. No torch.

A shard has the layout of WebDataset: the members whose names are equal up to the first dot
(`000123.flac`, `000123.json`, `000123.txt`) are one clip.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from stagecli.data.finding import SUFFIXES
from stagecli.data.text_files import text_problem

BLOCK = 512  # bytes: headers and contents of a tar begin at multiples of it
END = bytes(2 * BLOCK)  # what follows the last member
LARGEST_TEXT = 1 << 20  # bytes of a member that holds a caption or labels
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class ShardError(Exception):
    """Why a whole shard cannot be used."""


class ShardClip(NamedTuple):
    """One clip of a shard.

    name: of its audio member, empty where there is none; start, size: bytes of the audio within the
    tar; labels, caption: the text of the `.json` and of the `.txt` member; problem: why the members
    are no clip; digest: SHA-256 of the audio, and facts: what its check found, where whoever wrote
    the shard has noted them.
    """

    key: str
    name: str = ""
    start: int = 0
    size: int = 0
    labels: str | None = None
    caption: str | None = None
    problem: str | None = None
    digest: str | None = None
    facts: list[Any] | None = None


@dataclass
class ShardIndex:
    """The clips of a shard in their order; passed_over: number of other members by their ending."""

    clips: list[ShardClip]
    passed_over: dict[str, int] = field(default_factory=dict)


class Member(NamedTuple):
    """A regular member: where its content lies in the tar."""

    name: str
    start: int
    size: int


def read_tar(file: BinaryIO) -> ShardIndex:
    """The index of an open tar. Raises ShardError for damage, OSError."""
    return index_of(file, list(tar_members(file)))


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """The regular members of an open tar, whose end is verified. Raises ShardError, OSError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    _require_plain(file.read(8), size)
    file.seek(0)
    end = 0
    try:
        with tarfile.TarFile(fileobj=file, mode="r") as tar:
            for member in tar:
                padded = -(-member.size // BLOCK) * BLOCK if member.isreg() else 0
                end = member.offset_data + padded
                if member.offset_data + member.size > size and member.isreg():
                    raise ShardError(f"is cut short: {member.name} ends beyond its {size:,} bytes")
                if member.issparse():
                    raise ShardError(f"{member.name} is a sparse member: pack it without holes")
                if member.isreg():
                    yield Member(member.name.removeprefix("./"), member.offset_data, member.size)
    except tarfile.TarError as error:
        is_cut = "unexpected end" in str(error)
        problem = (
            "is cut short: its last member is incomplete" if is_cut else "is not a tar archive"
        )
        raise ShardError(problem) from error
    _require_end(file, end, size)


def index_of(file: BinaryIO, members: list[Member]) -> ShardIndex:
    """The clips that members make up; the text of captions and labels is read from `file`."""
    groups: dict[str, list[tuple[str, Member]]] = {}
    passed_over: Counter[str] = Counter()
    for member in members:
        folder, base = os.path.split(member.name)
        stem, dot, ending = base.partition(".")
        ending = f"{dot}{ending}".lower()
        if not stem:
            passed_over["hidden"] += 1
        elif ending in SUFFIXES or ending in (".json", ".txt"):
            groups.setdefault(os.path.join(folder, stem), []).append((ending, member))
        else:
            passed_over[ending or "no ending"] += 1
    clips = [_clip(file, key, group) for key, group in groups.items()]
    return ShardIndex(clips, dict(sorted(passed_over.items())))


def _clip(file: BinaryIO, key: str, group: list[tuple[str, Member]]) -> ShardClip:
    """The clip of the members of one key, or its problem."""
    audio = [member for ending, member in group if ending in SUFFIXES]
    names = [member.name for _, member in group]
    if len(set(names)) < len(names) or len(audio) > 1:
        return ShardClip(key, problem=f"has several members of one kind: {', '.join(names)}")
    if not audio:
        return ShardClip(key, problem=f"{', '.join(names)} without an audio member of that name")
    if problem := text_problem(key):
        return ShardClip(key, problem=f"its name {problem}")
    texts: dict[str, str] = {}
    for ending, member in group:
        if ending in SUFFIXES:
            continue
        try:
            texts[ending] = _text(file, member)
        except ValueError as error:
            return ShardClip(key, problem=f"{member.name} cannot be read: it {error}")
    (member,) = audio
    return ShardClip(*(key, *member), labels=texts.get(".json"), caption=texts.get(".txt"))


def _text(file: BinaryIO, member: Member) -> str:
    """The UTF-8 text of a member. Raises ValueError with the reason."""
    if member.size > LARGEST_TEXT:
        raise ValueError(f"is larger than {LARGEST_TEXT:,} bytes")
    file.seek(member.start)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error


def _require_plain(magic: bytes, size: int) -> None:
    """Raise ShardError for an empty or compressed file."""
    if size == 0:
        raise ShardError("file is empty")
    for start, name in COMPRESSED.items():
        if magic.startswith(start):
            raise ShardError(
                f"is compressed ({name}), so that no member can be read by itself: decompress it"
            )


def _require_end(file: BinaryIO, end: int, size: int) -> None:
    """Raise ShardError unless zeros, and nothing else, follow the last member."""
    if size - end < len(END):
        raise ShardError("is cut short: the end of the archive is missing")
    file.seek(end)
    if file.read(len(END)) != END:
        raise ShardError(f"is damaged at byte {end:,}: no header of a member")
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise ShardError(
                "holds several archives in a row, of which only the first would be read: pack its "
                "members anew"
            )
