"""Writes tar shards from a manifest or a folder: the same clips always make the same bytes.

No torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecli.data.cache import Count, Progress
from stagecli.data.checking import as_json
from stagecli.data.clip_table import ClipView
from stagecli.data.file_source import FileSource
from stagecli.data.finding import SUFFIXES
from stagecli.data.open import read_source
from stagecli.data.rows import SPLITS, Clip, Split
from stagecli.data.shard_index import index_document, sidecar_of
from stagecli.data.tar_index import BLOCK, END, ShardClip, ShardIndex
from stagecli.errors import EXIT_FAILED, Problem, StageError, counted
from stagecli.files import atomic_path, write_atomic
from stagecli.schema import Data
from stagecli.targets import Target, cannot_write, plan_targets

SUMS = "SHA256SUMS"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SMALLEST = 10**3
LARGEST = 10**12
RESERVED = ("caption", "split")  # keys of the JSON of a clip besides its labels


def parse_size(text: str) -> int:
    """Bytes of a size such as `500MB`, `1GB` or `4096`. Raises StageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if not SMALLEST <= size <= LARGEST:
        raise StageError(
            f"--shard-size: {text[:40]!r} is no size of a shard",
            hint="give it as 500MB or 1GB, from 1 kB to 1 TB",
        )
    return size


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: clips `first` to `last` - 1 of a split; size: of the tar in bytes."""

    name: str
    split: Split
    first: int
    last: int
    size: int


def pack(
    data: Data,
    folder: Path,
    *,
    shard_bytes: int,
    force: bool,
    cache_dir: Path,
    progress: Progress,
) -> list[PlannedShard]:
    """Check a manifest or folder and write its clips as shards. cache_dir: for the checks.

    Raises StageError with every problem before anything is written.
    """
    source = read_source(data, need_captions=False, base=Path.cwd())
    problems = source.examine(
        SPLITS, cache_dir, lambda done, total: progress("checking audio", done, total)
    )
    if problems and data.on_bad_file == "error":
        raise StageError(
            f"{data.path}: {len(problems)} of its entries cannot be used",
            problems=problems,
            hint="""correct them, or leave them out: --set 'data.on_bad_file="skip"'""",
        )
    shards = plan_shards(source, shard_bytes)
    if not shards:
        raise StageError(f"{data.path}: no clips to pack", problems=problems)
    check_place(folder, shards, [Path(data.path)], force)
    write_shards(source, shards, folder, lambda done, total: progress("packing clips", done, total))
    return shards


def plan_shards(source: FileSource, shard_bytes: int) -> list[PlannedShard]:
    """The shards of the checked clips of a source, none larger than `shard_bytes` and one clip.

    Raises StageError, listing every clip that cannot be a member.
    """
    problems = [
        Problem(clip.key, problem)
        for split in SPLITS
        for clip in source.clips(split)
        if (problem := _problem(clip))
    ]
    if problems:
        raise StageError(
            f"{counted(len(problems), 'clip')} cannot be packed",
            problems=problems,
            hint="rename the columns, or convert the files to .flac",
        )
    return [
        shard for split in SPLITS for shard in _shards_of(split, source.clips(split), shard_bytes)
    ]


def _shards_of(split: Split, clips: ClipView, shard_bytes: int) -> Iterator[PlannedShard]:
    """The shards of one split, such as `train-000012.tar`."""
    number = 0
    first = 0
    size = len(END)
    for position, clip in enumerate(clips):
        more = _padded(clips.table.stamp(clip.row)[0]) + _padded(len(_labels(clip)))
        if position > first and size + more > shard_bytes:
            yield PlannedShard(f"{split}-{number:06d}.tar", split, first, position, size)
            number += 1
            first = position
            size = len(END)
        size += more
    if len(clips):
        yield PlannedShard(f"{split}-{number:06d}.tar", split, first, len(clips), size)


def check_place(
    folder: Path, shards: Sequence[PlannedShard], inputs: Sequence[Path], force: bool
) -> None:
    """Raise StageError unless all shards can be written to a folder that has the space.

    Other shards in the folder would be read with them, so there must be none.
    """
    names = [name for shard in shards for name in (shard.name, sidecar_of(shard.name))]
    others = sorted({path.name for path in folder.glob("*.tar")} - set(names))
    if others:
        raise StageError(
            f"{folder} holds other shards",
            problems=[
                Problem(str(folder / name), "would stay beside the new ones") for name in others
            ],
            hint="name another folder",
        )
    targets = [Target(folder / name, "DIR") for name in (*names, SUMS)]
    plan_targets(targets, inputs=inputs, force=force, make_folders=True)
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed = sum(shard.size for shard in shards)
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise StageError(
            f"the shards do not fit into {nearest}",
            problems=[Problem(str(folder), f"needs {needed:,} bytes, and {free:,} are free")],
            hint="free some space, or name another folder",
            exit_code=EXIT_FAILED,
        )


def write_shards(
    source: FileSource,
    shards: Sequence[PlannedShard],
    folder: Path,
    progress: Count | None = None,
) -> None:
    """Write the shards with an index beside each, and at last the checksums of the tars.

    Raises StageError where the disk refuses, or a file has changed since it was checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    done = 0
    total = sum(shard.last - shard.first for shard in shards)
    for shard in shards:
        path = folder / shard.name
        try:
            clips = source.clips(shard.split)[shard.first : shard.last]
            with atomic_path(path) as partial:
                index = _write_tar(source, clips, shard.first, partial)
                digest = _digest(partial)
                size = partial.stat().st_size
            document = json.dumps(index_document(index, size))
            write_atomic(Path(sidecar_of(str(path))), document + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error
        sums.append(f"{digest}  {shard.name}\n")
        done += len(clips)
        if progress:
            progress(done, total)
    try:
        write_atomic(folder / SUMS, "".join(sums))
    except OSError as error:
        raise cannot_write(folder / SUMS, error) from error


def _write_tar(source: FileSource, clips: ClipView, first: int, path: Path) -> ShardIndex:
    """Write one tar; its index."""
    rows = []
    with (
        path.open("wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, clip in enumerate(clips, first):
            audio = source.content(clip)
            labels = _labels(clip)
            digest = hashlib.sha256(audio).hexdigest()
            if digest != source.content_hash(clip):
                raise StageError(
                    "a file has changed since it was checked",
                    problems=[Problem(clip.key, "has other content")],
                    hint="start again",
                    exit_code=EXIT_FAILED,
                )
            key = f"{number:09d}"
            name = f"{key}{_ending(clip)}"
            start = _add(tar, name, audio)
            _add(tar, f"{key}.json", labels)
            facts = as_json((source.info(clip), None))
            rows.append(
                ShardClip(
                    *(key, name, start, len(audio)),
                    labels=labels.decode(),
                    digest=digest,
                    facts=facts,
                )
            )
    return ShardIndex(rows)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member without an owner or a time; the byte at which its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    start = tar.offset + BLOCK
    tar.addfile(member, io.BytesIO(content))
    return start


def _labels(clip: Clip) -> bytes:
    """The JSON of a clip: its labels, its caption or captions, and its split."""
    captions = list(clip.captions) if clip.more_captions else clip.caption
    content = {**clip.labels, "caption": captions, "split": clip.split}
    if not clip.caption and not clip.more_captions:
        del content["caption"]
    return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()


def _problem(clip: Clip) -> str | None:
    """Why a clip cannot be a member of a shard."""
    taken = [name for name in RESERVED if name in clip.labels]
    if taken:
        return f"has a label `{taken[0]}`, which a shard uses for something else"
    if _ending(clip) not in SUFFIXES:
        return f"is a {_ending(clip) or 'file without an ending'}, which shards do not hold"
    try:
        json.dumps(dict(clip.labels))
    except (TypeError, ValueError) as error:
        return f"has labels that JSON cannot hold: {error}"
    return None


def _ending(clip: Clip) -> str:
    return os.path.splitext(clip.key)[1].lower()


def _padded(size: int) -> int:
    """Bytes that a member takes in a tar."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
