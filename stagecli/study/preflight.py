"""Everything that can be checked before the first training step of a study is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stagecli.data.cache import Progress
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.generate.pipeline import default_device
from stagecli.recipe.signature import flatten
from stagecli.runs.directory import is_run, read_info
from stagecli.runs.lock import lock_run
from stagecli.runs.resuming import refuse_other_recipe, saved_recipe
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder
from stagecli.stage import registry
from stagecli.study.plan import RunId, Study
from stagecli.study.records import refuse_other_scoring
from stagecli.study.scoring import metrics_of, open_clips
from stagecli.train.encoders import load_frozen
from stagecli.train.precision import resolve_precision

WAIT_FOR_LOCK = 10.0  # seconds in which processes of a killed study end
CACHED = ("data.", "codec.", "condition.")  # keys that decide what a run fills caches with


@dataclass(frozen=True)
class Checked:
    """recipe: of the baseline; metrics: as in study.json; caches: arm -> name of its caches."""

    recipe: Recipe
    metrics: Mapping[str, JsonRow]
    caches: Mapping[str, str]


def check(
    study: Study, runs: list[RunId], progress: Progress, note: Callable[[str], None]
) -> Checked:
    """Check encoders, data, scores, and the runs that are there. Raises StageError."""
    # Runs that are there, of these recipes and of nobody else.
    recipes = {
        name: study.load_recipe(RunId(name, arm.seeds[0])) for name, arm in study.arms.items()
    }
    baseline = recipes[study.baseline]
    refuse_other_scoring(study, baseline)
    problems = [problem for run in runs for problem in _changes(study, run)]
    if problems:
        raise StageError(
            f"{study.folder} holds runs of other recipes",
            problems=problems,
            hint="restore the study file, give the changed arm another name, or another folder "
            "with -o",
        )
    for run in runs:
        _wait_until_free(study, run)

    # Encoders of every arm.
    for name, recipe in recipes.items():
        try:
            _open_encoders(study, name, recipe)
        except StageError as error:
            raise StageError(
                f"arm {name}: {error.message}", problems=error.problems, hint=error.hint
            ) from error

    # The data, and the scores of real clips.
    clips = open_clips(baseline, study.score, default_device(), progress=progress, note=note)
    if study.score.primary not in clips.names:
        raise StageError(
            f"there is no score {study.score.primary!r} with these data",
            problems=[Problem("score.primary", f"there are: {', '.join(clips.names)}")],
        )
    caches = {name: _caches(recipe) for name, recipe in recipes.items()}
    return Checked(baseline, metrics_of(clips.names), caches)


def _changes(study: Study, run: RunId) -> list[Problem]:
    """How the recipe of a run that is there differs from the study's."""
    folder = study.run_dir(run)
    if not is_run(folder):
        return []
    info = read_info(folder)
    if not info["attempts"] and info["status"] in ("failed", "interrupted"):
        return []  # it never began
    before, _ = saved_recipe(folder)
    recipe = resolve_precision(study.load_recipe(run))
    problems = []
    try:
        refuse_other_recipe(recipe, folder, info, before)
    except StageError as error:
        problems = [
            Problem(f"arm {run.arm}, seed {run.seed}", f"{p.where}: {p.what}")
            for p in error.problems
        ]
    if before is not None and before.train.steps != recipe.train.steps:
        what = f"train.steps: {before.train.steps} in the run, {recipe.train.steps} now"
        problems.append(Problem(f"arm {run.arm}, seed {run.seed}", what))
    return problems


def _wait_until_free(study: Study, run: RunId) -> None:
    """Wait until no process of a killed study writes a run. Raises StageError if one does."""
    folder = study.run_dir(run)
    if not folder.is_dir():
        return
    end = time.monotonic() + WAIT_FOR_LOCK
    while True:
        try:
            lock_run(folder).release()
            return
        except StageError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _open_encoders(study: Study, name: str, recipe: Recipe) -> None:
    """Open what training opens. Raises StageError where one does not fit."""
    if not any(study.arms[name].references()):
        load_frozen(recipe, default_device())
        return
    for use in registry.encoders(recipe.stage):  # mechanisms would read a run that is not there yet
        open_encoder(use.encoder)


def _caches(recipe: Recipe) -> str:
    """A name of the caches that a run of this recipe fills."""
    keys = {key: value for key, value in flatten(recipe).items() if key.startswith(CACHED)}
    encoders = [(use.encoder, use.role) for use in registry.encoders(recipe.stage)]
    return json.dumps([keys, encoders], sort_keys=True)
