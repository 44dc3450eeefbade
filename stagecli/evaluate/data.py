"""The data on which a run is evaluated: its own, wherever they are now, or any others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from stagecli.data.cache import Progress
from stagecli.data.file_source import FileSource
from stagecli.data.finding import SUFFIXES
from stagecli.data.fingerprint import DIGITS, Fingerprint, differences, fingerprint
from stagecli.data.open import open_source
from stagecli.data.remote import is_remote
from stagecli.data.rows import Clip, Split
from stagecli.data.shard_names import holds_shards
from stagecli.data.source import Source
from stagecli.errors import Problem, StageError, among, counted
from stagecli.evaluate.chosen import needs_training_split
from stagecli.evaluate.flags import Flags
from stagecli.runs.data_file import read_fingerprint
from stagecli.schema import Data, Recipe

ALL = "all"  # instead of a split, where the data have none
NAMED = 3  # clips named in a warning
TABLES = ("dataset_dict.json", "state.json", "*.parquet", "*.arrow")  # of a Hugging Face folder


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """split: of the clips, "all" for a data set without splits; clips: all of them; contents: of
    data that --data names, a hash of their audio, so that scores of other clips of the same names
    are not taken for theirs."""

    source: Source
    split: str
    clips: list[Clip]
    contents: str | None = None


def open_data(
    recipe: Recipe,
    flags: Flags,
    run_dir: Path,
    *,
    progress: Progress,
    warn: Callable[[str], None],
) -> EvaluationData:
    """The clips to score, and for t2a the splits they are compared with.

    Warns where they differ from those that the run was trained on, or are among those. For sr,
    --data may be any manifest or folder: without splits of its own, all of it is scored, unless it
    holds clips that the run was trained on; unusable files are left out with a warning. Raises
    StageError.
    """
    # What to open.
    split = cast(Split, flags.split)
    splits = _splits(recipe, flags)
    data = _placed(recipe.data, flags.data, run_dir)
    any_audio = flags.data is not None and recipe.task.kind == "sr"
    if any_audio:
        data = data.model_copy(update={"on_bad_file": "skip"})
    with_captions = recipe.condition.text != "none"
    trained_on = _trained_on(run_dir, warn)

    def opened(undivided: Split | None) -> Source:
        return open_source(
            data,
            need_captions=with_captions and not any_audio,
            base=Path.cwd(),
            splits=splits,
            seed=recipe.train.seed,
            undivided=undivided,
            progress=lambda done, total: progress("checking audio", done, total),
        )

    # Its clips; data without splits in which the run was trained on some are divided as it does.
    source = opened(split if any_audio else None)
    whole = any_audio and isinstance(source, FileSource) and not source.divided
    clips = list(source.clips(split))
    if whole and _known(source, clips, trained_on):
        source = opened(None)
        whole = False
        clips = list(source.clips(split))
    _warn_about_source(source, data, warn)

    # Whether they are what the run knows.
    before = {name: prints for name, prints in trained_on.items() if name in splits}
    if any_audio:
        _warn_about_known_clips(_known(source, clips, trained_on), len(clips), warn)
    else:
        now = fingerprint(source, list(before), with_captions=with_captions)
        for change in differences(before, now):
            warn(f"not the data that the run was trained on: {change.split}: {change.text()}")
    return EvaluationData(
        source=source,
        split=ALL if whole else flags.split,
        clips=clips,
        contents=_contents(source, clips) if flags.data else None,
    )


def _splits(recipe: Recipe, flags: Flags) -> list[Split]:
    """The split to score, and those that t2a compares with it."""
    split = cast(Split, flags.split)
    if recipe.task.kind == "sr":
        return [split]
    others: list[Split] = ["train", "valid"] if needs_training_split(flags) else ["train"]
    return list(dict.fromkeys([*others, split]))


def _trained_on(run_dir: Path, warn: Callable[[str], None]) -> Fingerprint:
    """The clips that the run was trained on, as far as it stored them."""
    try:
        return read_fingerprint(run_dir) or {}
    except StageError as error:
        warn(f"{error.message}: {error.problems[0].where} {error.problems[0].what}")
        return {}


def _known(source: Source, clips: list[Clip], trained_on: Fingerprint) -> list[str]:
    """Keys of those clips whose audio is in the training split of the run."""
    trained = {clip.content for clip in trained_on.get("train", ())}
    hashes = source.content_hashes(clips) if trained else []
    return [
        clip.key
        for clip, digest in zip(clips, hashes, strict=bool(trained))
        if digest[:DIGITS] in trained
    ]


def _contents(source: Source, clips: list[Clip]) -> str:
    digest = hashlib.sha256("\n".join(source.content_hashes(clips)).encode())
    return digest.hexdigest()[:DIGITS]


def _warn_about_known_clips(known: list[str], total: int, warn: Callable[[str], None]) -> None:
    if known:
        more = ", ..." if len(known) > NAMED else ""
        warn(
            f"the run was trained on {among(len(known), total, 'clip')} that are scored: "
            f"{', '.join(known[:NAMED])}{more}"
        )


def _warn_about_source(source: Source, data: Data, warn: Callable[[str], None]) -> None:
    """What was passed over or left out."""
    for notice in (*source.notices, *source.passed_over):
        warn(notice)
    if source.skipped:
        named = "; ".join(f"{problem.where}: {problem.what}" for problem in source.skipped[:NAMED])
        more = "; ..." if len(source.skipped) > NAMED else ""
        files = counted(len(source.skipped), "file is", "files are")
        warn(f"{data.path}: {files} not scored: {named}{more}")


def _placed(data: Data, path: Path | None, run_dir: Path) -> Data:
    """`[data]` with the path that the user gives. Raises StageError where there is nothing."""
    if path is not None:
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            problem = Problem(str(path), "is one audio file, not a manifest")
            raise StageError("--data: nothing to score", problems=[problem], hint="name its folder")
        kind = _kind(path.expanduser(), data.source)
        data = data.model_copy(update={"path": str(path), "source": kind})
    is_local = data.source in ("manifest", "folder") and not is_remote(data.path)
    if is_local and not Path(data.path).expanduser().exists():
        if path is not None:
            raise StageError(
                "--data: nothing to score", problems=[Problem(str(path), "is missing")]
            )
        raise StageError(
            f"the data of {run_dir} are not where they were",
            problems=[Problem(data.path, "is missing")],
            hint="say where they are now with --data PATH",
        )
    return data


def _kind(path: Path, kind_of_recipe: str) -> str:
    """Which kind of data set lies at a path; one that is nowhere may be the name of one."""
    if path.is_file():
        return "shards" if path.suffix == ".tar" else "manifest"
    if path.is_dir():
        if holds_shards(path):
            return "shards"
        tables = any(next(path.rglob(pattern), None) for pattern in TABLES)
        return "huggingface" if tables else "folder"
    return "huggingface" if kind_of_recipe == "huggingface" else "folder"
