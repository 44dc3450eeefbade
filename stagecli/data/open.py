"""Opens the source that a recipe's `[data]` table describes: manifest, folder, Hugging Face data set or synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecli.data.cache import Count
from stagecli.data.rows import SPLITS, Split, folder_rows, manifest_rows, split_names
from stagecli.data.source import FileSource, Source
from stagecli.errors import StageError
from stagecli.schema import Data


def open_source(
    data: Data,
    *,
    need_captions: bool,
    base: Path,
    splits: Sequence[Split] = SPLITS,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Count | None = None,
) -> Source:
    """The source that `[data]` describes, checked; only `splits` can be read and must not be empty.

    base: what a relative `data.path` starts from; cache_dir: where checks are remembered (default:
    `data.cache_dir`); seed: of `synth`; progress: (files checked, files). StageError with every problem,
    as `manifest.jsonl:LINE`, unless `data.on_bad_file` is "skip"; then they are in `skipped`.
    """
    if data.source == "synth":
        from stagecli.data.synth import SynthSource

        synth: Source = SynthSource(data, seed)
        return synth
    if not data.path:
        raise StageError(
            "data.path is empty", hint=f'set data.path: source = "{data.source}" reads it'
        )
    if len(set(split_names(data))) < len(SPLITS):
        raise StageError("data.train_split, data.valid_split and data.test_split must differ")
    path = base / Path(data.path).expanduser()
    opened: FileSource
    if data.source == "manifest":
        opened = ManifestSource(data, path, need_captions)
    elif data.source == "folder":
        opened = FolderSource(data, path, need_captions)
    else:
        from stagecli.data.huggingface import HuggingFaceSource

        opened = HuggingFaceSource(data, path, need_captions, splits)
    opened.check(splits, cache_dir or Path(data.cache_dir), progress)
    return opened


class ManifestSource(FileSource):
    """A JSONL or CSV (TSV) file with a line per clip: path, caption, split, and labels.

    Paths are relative to the manifest. Every other column is kept as a label. A manifest without any
    split is split by `hash_split` of its paths. The same file on two lines is a problem.
    """

    def __init__(self, data: Data, path: Path, need_captions: bool) -> None:
        super().__init__(data, str(path), manifest_rows(data, path, need_captions))


class FolderSource(FileSource):
    """Audio files of a folder and its sub-folders, captions beside them.

    `a.wav` has its caption in `a.txt`, or in the `data.caption_column` of `a.json`, whose other keys are
    labels. A folder in the path named like a split decides the split (then every file must lie in one);
    without such folders `hash_split` of the path does. Hidden files are left out.
    """

    def __init__(self, data: Data, path: Path, need_captions: bool) -> None:
        super().__init__(data, str(path), folder_rows(data, path, need_captions))
