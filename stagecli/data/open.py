"""Opens the source described by a recipe's `[data]` section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stagecli.data.cache import Count
from stagecli.data.checking import CHECKS
from stagecli.data.file_source import FileSource
from stagecli.data.finding import list_audio
from stagecli.data.folder import folder_entries
from stagecli.data.locations import absolute
from stagecli.data.manifest import manifest_entries, manifest_splits
from stagecli.data.remote import is_remote
from stagecli.data.rows import SPLITS, Entry, Split, split_names
from stagecli.data.snapshot import Snapshot, stamp_or_missing
from stagecli.data.source import Source
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.schema import Data

# Keys of `[data]` that do not decide which entries there are.
NO_ENTRIES = {"cache_dir", "clips", "crops", "memory_mb", "narrow", "padding", "seconds"}
NO_ENTRIES |= {"remote_cache_gb", "synth_share", "workers"}


def open_source(
    data: Data,
    *,
    need_captions: bool,
    base: Path,
    splits: Sequence[Split] = SPLITS,
    seed: int = 0,
    cache_dir: Path | None = None,
    undivided: Split | None = None,
    progress: Count | None = None,
) -> Source:
    """The source described by `[data]`, checked: manifest, folder, Hugging Face data set or synth.

    Only `splits` can be read, and none of them may be empty. base: folder that a relative
    `data.path` starts from; cache_dir: where checks are remembered (default: `data.cache_dir`);
    undivided: the split of all clips of a manifest or folder that has no splits, instead of one by
    hash; seed: of `synth`; progress: (files checked, files). Raises StageError with every problem,
    as `manifest.jsonl:LINE`, unless `data.on_bad_file` is "skip"; then they are in `skipped`.
    """
    if data.source == "synth":
        from stagecli.data.synth import SynthSource

        return SynthSource(data, seed)

    # Recordings, all of them checked, and the clips beside them.
    cache = cache_dir or Path(data.cache_dir)
    meaning = {"captions": need_captions, "splits": list(splits), "undivided": undivided}
    snapshot = _snapshot(data, base, cache, meaning)
    source = _restored(data, base, cache, snapshot) if snapshot is not None else None
    if source is None:
        source = read_source(
            data,
            need_captions=need_captions,
            base=base,
            splits=splits,
            undivided=undivided,
            cache_dir=cache,
        )
        source.snapshot = snapshot
        source.notices += snapshot.notices if snapshot is not None else []
        source.check(splits, cache, progress)
    if data.synth_share > 0 and "train" in splits:
        from stagecli.data.mixed import MixedSource
        from stagecli.data.synth import SynthSource

        return MixedSource(source, SynthSource(data, seed))
    return source


def read_source(
    data: Data,
    *,
    need_captions: bool,
    base: Path,
    splits: Sequence[Split] = SPLITS,
    undivided: Split | None = None,
    cache_dir: Path | None = None,
) -> FileSource:
    """The recordings of `[data]`, whose audio is not checked yet; as `open_source`."""
    path = _place(data, base)
    if data.source == "shards":
        from stagecli.data.shards import ShardSource, read_shards

        cache = cache_dir or Path(data.cache_dir)
        shards, entries, passed_over = read_shards(data, base, need_captions, cache)
        files = [(shard.location, shard.stamp) for shard in shards]
        entries = _together(entries, undivided)
        return ShardSource(data, files, entries, passed_over, shards)
    if data.source == "manifest" and is_remote(data.path):
        from stagecli.data.remote_manifest import RemoteSource, read_manifest

        entries = read_manifest(data, cache_dir or Path(data.cache_dir), need_captions)
        return RemoteSource(data, _together(entries, undivided))
    if data.source == "manifest":
        entries = manifest_entries(data, path, need_captions)
        return FileSource(data, str(path), _together(entries, undivided), (), path.parent)
    if data.source == "folder":
        entries, passed_over = folder_entries(data, path, need_captions)
        return FileSource(data, str(path), _together(entries, undivided), passed_over, path)
    from stagecli.data.huggingface import read_dataset

    return read_dataset(data, path, need_captions, splits)


def _snapshot(data: Data, base: Path, cache: Path, meaning: JsonRow) -> Snapshot | None:
    """Where a data set of this kind would be kept; None for kinds that are read anew each time.

    meaning: what besides `[data]` decides which entries there are.
    """
    if data.source == "manifest" and not is_remote(data.path):
        files = [str(_place(data, base))]
    elif data.source == "shards":
        from stagecli.data.shard_index import sidecar_of
        from stagecli.data.shard_names import shard_paths

        _place(data, base)
        shards = shard_paths(data.path, base)
        files = [name for shard in shards for name in (shard, sidecar_of(shard))]
    else:
        return None
    keys = data.model_dump(mode="json", exclude=NO_ENTRIES)
    identity = {"files": [absolute(file) for file in files], "keys": keys, **meaning}
    watched = {absolute(file): stamp_or_missing(file) for file in files}
    return Snapshot(cache, {**identity, "checks": CHECKS}, watched)


def _restored(data: Data, base: Path, cache: Path, snapshot: Snapshot) -> FileSource | None:
    """The source as a snapshot holds it, None where that is not possible."""
    path = _place(data, base)
    source = FileSource(data, str(path), (), (), path.parent)
    if data.source == "shards":
        from stagecli.data.shard_names import shard_paths
        from stagecli.data.shards import ShardSource

        shards = shard_paths(data.path, base)
        files = [(location, snapshot.watched[absolute(location)]) for location in shards]
        source = ShardSource(data, files, (), ())
    source.snapshot = snapshot
    return source if source.restore(cache) else None


def recorded_splits(data: Data, base: Path) -> list[str]:
    """Every name that the data set may give to a split. Raises StageError as `open_source`."""
    path = _place(data, base)
    if data.source == "manifest" and is_remote(data.path):
        from stagecli.data.remote_manifest import fetched

        path = fetched(data, Path(data.cache_dir))
    if data.source == "manifest":
        return manifest_splits(data, path)
    if data.source == "folder":
        folders = (file.parts[:-1] for file in list_audio(path).files)
        return list(dict.fromkeys(name for parts in folders for name in parts))
    if data.source == "shards":
        from stagecli.data.shards import shard_splits

        return shard_splits(data, base, Path(data.cache_dir))
    from stagecli.data.huggingface import dataset_splits

    return dataset_splits(data, path)


def _place(data: Data, base: Path) -> Path:
    """Where the data are. Raises StageError for what can be wrong with the section itself."""
    if not data.path:
        raise StageError(
            "data.path is empty", hint=f'set data.path: source = "{data.source}" reads it'
        )
    if len(set(split_names(data))) < len(SPLITS):
        raise StageError("data.train_split, data.valid_split and data.test_split must differ")
    try:
        return base / Path(data.path).expanduser()
    except RuntimeError as error:  # `~name` of nobody
        problem = Problem(data.path, "names the home of a user that does not exist")
        raise StageError(
            "cannot read the data", problems=[problem], hint="check data.path"
        ) from error


def _together(entries: list[Entry], split: Split | None) -> list[Entry]:
    """The entries, all clips in `split` if the data set has no splits of its own."""
    if split is None or not all(entry.drawn for entry in entries if entry.clip):
        return entries
    return [
        replace(entry, clip=replace(entry.clip, split=split)) if entry.clip else entry
        for entry in entries
    ]
