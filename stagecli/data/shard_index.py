"""The index of a shard: from the cache, from a file beside the tar, or made and then cached.

No torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stagecli.data.checking import CHECKS
from stagecli.data.file_index import Stamp, unusable
from stagecli.data.locations import absolute, open_at, stamp_at
from stagecli.data.tar_index import (
    BLOCK,
    END,
    Member,
    ShardClip,
    ShardError,
    ShardIndex,
    index_of,
    read_tar,
)
from stagecli.files import opened, parse_json, sealed, write_json

VERSION = 1  # of the format of an index
REMAKE = "remove it, or pack the shard again"


@dataclass(frozen=True)
class Shard:
    """A tar with its index. stamp: of the tar when it was indexed."""

    location: str
    stamp: Stamp
    index: ShardIndex


def open_shard(location: str, cache_dir: Path) -> Shard:
    """A shard, indexed now unless its index is known for the file as it is.

    Raises ShardError for a tar that cannot be used, or an index beside it that does not fit;
    OSError; StageError where the cache cannot be written.
    """
    stamp = stamp_at(location)
    cached = _cache_file(location, stamp, cache_dir)
    index = _load(cached)
    if index is None:
        index = _beside(location, stamp)
        if index is None:
            with open_at(location) as file:
                index = read_tar(file)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_json(cached, index_document(index, stamp[0]), indent=None)
        except OSError as error:
            raise unusable(cached, error) from error
    if not index.clips:
        raise ShardError("holds no clips")
    return Shard(location, stamp, index)


def index_document(index: ShardIndex, size: int) -> dict[str, Any]:
    """An index as JSON with its checksum. size: bytes of the tar."""
    content = {
        "stagecli_shard_index": VERSION,
        "checks": CHECKS,
        "size": size,
        "clips": [list(clip) for clip in index.clips],
        "passed_over": index.passed_over,
    }
    return sealed(content)


def index_from(document: Any, size: int) -> ShardIndex:
    """The index of a tar of `size` bytes in a document. Raises ValueError where it does not fit."""
    if not isinstance(document, dict) or document.get("stagecli_shard_index") != VERSION:
        raise ValueError("is not an index of this version")
    content, problem = opened(document)
    if problem:
        raise ValueError(problem)
    if content.get("size") != size:
        raise ValueError(f"is that of a tar of {content.get('size'):,} bytes, not {size:,}")
    clips = [ShardClip(*clip) for clip in content["clips"]]
    if content.get("checks") != CHECKS:
        clips = [clip._replace(facts=None) for clip in clips]
    return ShardIndex(clips, content["passed_over"])


def sidecar_of(location: str) -> str:
    """Where the index beside a shard would be: `train-000.idx` for `train-000.tar`."""
    return f"{location.removesuffix('.tar')}.idx"


def _cache_file(location: str, stamp: Stamp, cache_dir: Path) -> Path:
    name = f"{absolute(location)}|{stamp[0]}|{stamp[1]}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir / "shards" / f"{digest[:32]}.json"


def _load(path: Path) -> ShardIndex | None:
    """A cached index, None where there is none that can be used."""
    try:
        document = parse_json(path.read_bytes())
        return index_from(document, document.get("size"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error) from error
    except (ValueError, TypeError, AttributeError, KeyError):  # damaged: it is made again
        return None


def _beside(location: str, stamp: Stamp) -> ShardIndex | None:
    """The index that lies beside a shard, None without one. Raises ShardError, OSError."""
    name = sidecar_of(location)
    try:
        with open_at(name) as file:
            content = file.read()
    except FileNotFoundError:
        return None
    base = os.path.basename(name)
    with open_at(location) as tar:
        try:
            if content[:1] == b"v":
                members = wds2idx_members(content)
                _compare(tar, members, stamp[0])
                return index_of(tar, members)
            index = index_from(parse_json(content), stamp[0])
            members = [Member(clip.name, clip.start, clip.size) for clip in index.clips]
            _compare(tar, members, stamp[0])
            return index
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError(f"its index {base} {error}: {REMAKE}") from error


def wds2idx_members(content: bytes) -> list[Member]:
    """The members in an index as DALI's `wds2idx` writes it: `ending offset size name`, each.

    Raises ValueError with the reason.
    """
    lines = content.decode("utf-8").splitlines()
    version = lines[0].split()[0]
    if version != "v1.2":
        raise ValueError(f"has version {version}, which states no names")
    members = []
    for line in lines[1:]:
        words = line.split(" ")
        if len(words) % 4:
            raise ValueError(f"has a line that is no list of members: {line[:80]!r}")
        for start in range(0, len(words), 4):
            _, offset, size, name = words[start : start + 4]
            members.append(Member(name.removeprefix("./"), int(offset), int(size)))
    return members


def _compare(tar: BinaryIO, members: Sequence[Member], size: int) -> None:
    """Raise ValueError unless the members, as far as compared, are in the tar where they should be.

    All of them must lie one after the other within its `size` bytes; of the first, the middle and
    the last one the header is read.
    """
    ordered = sorted(members, key=lambda member: member.start)
    end = 0
    for member in ordered:
        if member.start < end + BLOCK or member.start % BLOCK or member.size < 0:
            raise ValueError(f"does not match its tar: {member.name!r} cannot begin there")
        end = member.start + -(-member.size // BLOCK) * BLOCK
    if end + len(END) > size:
        raise ValueError(f"does not match its tar, which ends before {ordered[-1].name!r}")
    for member in (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else ():
        tar.seek(member.start - BLOCK)
        header = tar.read(BLOCK)
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace").removeprefix("./")
        stated = int(header[124:136].strip(b"\0 ") or b"0", 8)
        is_short = len(member.name.encode()) < 100 and b"ustar" in header[257:263]
        if is_short and os.path.basename(name) != os.path.basename(member.name):
            raise ValueError(f"does not match its tar: {name!r} is where {member.name!r} should be")
        if b"ustar" not in header[257:263] or stated != member.size:
            raise ValueError(f"does not match its tar: {member.name!r} has another size or place")
