"""Trained weights by the name a user gives them: a run, an export, or an export on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.hub.exports import download_export, is_hub_id
from stagecli.runs import checkpoint
from stagecli.runs.directory import is_run, read_info
from stagecli.runs.exports import CODEC, check_export, export_recipe, is_export, read_export
from stagecli.runs.integrity import GENERATES, Warn, name_of
from stagecli.runs.names import RUNS, unknown_run
from stagecli.runs.resuming import recipe_of_checkpoint
from stagecli.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The weights of one step, and what generating with them needs.

    home: folder of the run or export; path: folder of the weights; info: run.json or export.json;
    doubts: what was damaged, or why the recipe is not that of the run; codecs: copies of the
    codec's statistics, of which the first whole one counts.
    """

    home: Path
    path: Path
    step: int
    info: JsonRow
    recipe: Recipe
    doubts: Sequence[str] = field(default=())
    codecs: Sequence[Path]

    @property
    def name(self) -> str:
        """Name of the step, as that of a checkpoint."""
        return name_of(self.step)


def locate(source: str | Path, runs_dir: Path = RUNS) -> Path:
    """The folder of a run or export: its path, its name under `runs_dir`, or its id on the hub.

    A path counts before a name, and a name before an id. Raises StageError.
    """
    path = Path(source).expanduser()
    for folder in (path, runs_dir / path):
        if is_export(folder) or is_run(folder):
            return folder
    if path.exists():
        raise StageError(
            f"{source} is neither a run nor an export",
            hint="name a folder made by `stagecli train` or `stagecli export`",
        )
    # `runs/typo` has the form of an id, and its folder shows that it is a path.
    if is_hub_id(str(source)) and not path.parent.is_dir():
        return download_export(str(source))
    raise unknown_run(path, runs_dir, "run or export")


def find_trained(
    home: Path, which: str = "latest", *, weights: str = "ema", warn: Warn | None = None
) -> Trained:
    """The weights of a run or export, with every file they need checked.

    which: latest, best, or a step; weights: `ema` or `model`; warn: receives what is damaged and
    what is used instead. Raises StageError.
    """
    if is_export(home):
        return _of_export(home, which)
    info = read_info(home)
    if which == "best":
        if not info.get("best"):
            raise StageError(f"{home} has no best checkpoint yet", hint="use --checkpoint latest")
        which = str(info["best"]["step"])
    needed = (*GENERATES, f"{weights}.safetensors")
    path = checkpoint.resolve(home / "checkpoints", which, needed=needed, warn=warn)
    recipe, doubts = recipe_of_checkpoint(home, path)
    return Trained(
        home=home,
        path=path,
        step=int(path.name.removeprefix("step_")),
        info=info,
        recipe=recipe,
        doubts=doubts,
        codecs=[folder / CODEC for folder in (home, path)],
    )


def _of_export(home: Path, which: str) -> Trained:
    """Raises StageError where it is damaged, or another step is asked for than it holds."""
    check_export(home)
    info = read_export(home)
    step = info["step"]
    if which not in ("latest", str(step), name_of(step)):
        raise StageError(
            f"{home} has no checkpoint {which!r}",
            problems=[Problem(str(home), f"is an export of step {step} alone")],
            hint="leave the checkpoint out, or name the run that it was exported from",
        )
    return Trained(
        home=home,
        path=home,
        step=step,
        info=info,
        recipe=export_recipe(home),
        codecs=[home / CODEC],
    )
