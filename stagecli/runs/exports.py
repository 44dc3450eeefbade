"""Exports: folders with what generating needs of one checkpoint, apart from its run. No torch.

NAME/  ema.safetensors  codec.safetensors  recipe.toml  export.json  README.md  sha256sums.txt
       networks/  copies of frozen networks that the run read from local folders, if any
"""

from __future__ import annotations

from pathlib import Path

from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow, opened, read_json
from stagecli.recipe.load import load_from_run
from stagecli.report.rows import LARGEST_STEP
from stagecli.runs.directory import read_info
from stagecli.runs.integrity import SUMS, changed_file
from stagecli.schema import Recipe

INFO = "export.json"
CARD = "README.md"
NETWORKS = "networks"
WEIGHTS = "ema.safetensors"
CODEC = "codec.safetensors"
RECIPE = "recipe.toml"
SCHEMA = 1
REQUIRED = (WEIGHTS, CODEC, RECIPE, INFO)


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export, damaged or not."""
    return (folder / INFO).is_file()


def read_export(folder: Path) -> JsonRow:
    """export.json. Raises StageError where it is damaged."""
    try:
        info, problem = opened(read_json(folder / INFO))
        problem = problem or _problem(info)
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, str(error)) from error
    if problem is not None:
        raise _damaged(folder, f"{INFO}: {problem}")
    return info


def check_export(folder: Path) -> None:
    """Raise StageError unless every file is the one that was written."""
    try:
        problem = changed_file(folder, REQUIRED) or changed_file(folder)
    except FileNotFoundError as error:
        problem = f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem is not None:
        raise _damaged(folder, problem)


def _damaged(folder: Path, problem: str) -> StageError:
    return StageError(
        f"the export {folder} is damaged",
        problems=[Problem(str(folder), problem)],
        hint=f"fetch or export it again; `sha256sum -c {SUMS}` in it checks every file",
    )


def _problem(info: JsonRow) -> str | None:
    """What is wrong with the content of export.json; None if nothing is."""
    if not isinstance(info.get("schema"), int) or info["schema"] > SCHEMA:
        return "was written by a newer version"
    step = info.get("step")
    if type(step) is not int or not 0 <= step <= LARGEST_STEP:
        return "`step` is not a step"
    if info.get("task") not in ("t2a", "sr"):
        return "`task` is not t2a or sr"
    return None


def read_model_info(folder: Path) -> JsonRow:
    """run.json of a run, or export.json of an export, with `id`, `name` and `task` in both.

    Raises StageError.
    """
    return read_export(folder) if is_export(folder) else read_info(folder)


def export_recipe(folder: Path) -> Recipe:
    """The recipe of an export, with the networks that lie in it. Raises StageError."""
    recipe = load_from_run(folder / RECIPE)
    codec = recipe.codec
    condition = recipe.condition
    inside = _inside(folder, model=codec.model, vocoder=codec.vocoder)
    return recipe.model_copy(
        update={
            "codec": codec.model_copy(update=inside),
            "condition": condition.model_copy(update=_inside(folder, model=condition.model)),
        }
    )


def _inside(folder: Path, **names: str) -> dict[str, str]:
    """Names of networks, those that lie in the export as paths."""
    start = f"{NETWORKS}/"
    return {
        key: str(folder / name) if name.startswith(start) else name for key, name in names.items()
    }
