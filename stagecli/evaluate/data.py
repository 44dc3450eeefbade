"""The data of a run that is evaluated: where they are now, and whether they are those it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from stagecli.data.cache import Progress
from stagecli.data.fingerprint import differences, fingerprint
from stagecli.data.open import open_source
from stagecli.data.rows import Split
from stagecli.data.source import Source
from stagecli.errors import Problem, StageError
from stagecli.evaluate.chosen import needs_training_split
from stagecli.evaluate.flags import Flags
from stagecli.runs.data_file import read_fingerprint
from stagecli.schema import Data, Recipe


def open_data(
    recipe: Recipe,
    flags: Flags,
    run_dir: Path,
    *,
    progress: Progress,
    warn: Callable[[str], None],
) -> Source:
    """The recipe's data: the split to score, and for t2a the splits it is compared with.

    Warns where they differ from those that the run was trained on. Raises StageError.
    """
    splits: list[Split] = [cast(Split, flags.split)]
    if recipe.task.kind == "t2a":
        others: list[Split] = ["train", "valid"] if needs_training_split(flags) else ["train"]
        splits = list(dict.fromkeys([*others, *splits]))
    data = _placed(recipe.data, flags.data, run_dir)
    with_captions = recipe.condition.text != "none"
    source = open_source(
        data,
        need_captions=with_captions,
        base=Path.cwd(),
        splits=splits,
        seed=recipe.train.seed,
        progress=lambda done, total: progress("checking audio", done, total),
    )
    for notice in source.notices:
        warn(notice)

    # The splits that the run was trained on, if they are read here.
    try:
        stored = read_fingerprint(run_dir) or {}
    except StageError as error:
        warn(f"{error.message}: {error.problems[0].where} {error.problems[0].what}")
        return source
    before = {split: prints for split, prints in stored.items() if split in splits}
    now = fingerprint(source, list(before), with_captions=with_captions)
    for change in differences(before, now):
        warn(f"not the data that the run was trained on: {change.split}: {change.text()}")
    return source


def _placed(data: Data, path: Path | None, run_dir: Path) -> Data:
    """`[data]` with the path that the user gives. Raises StageError where there is nothing."""
    if path is not None and data.source == "synth":
        raise StageError(f"--data: the data of {run_dir} are synthesised and lie nowhere")
    if path is not None:
        data = data.model_copy(update={"path": str(path)})
    if data.source in ("manifest", "folder") and not Path(data.path).expanduser().exists():
        raise StageError(
            f"the data of {run_dir} are not where they were",
            problems=[Problem(data.path, "is missing")],
            hint="say where they are now with --data PATH",
        )
    return data
