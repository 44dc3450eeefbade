"""Loads a study: a path or a shipped name -> a checked `Study`, or every problem. No torch."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagecli.errors import Problem, StageError
from stagecli.files import is_regular_file
from stagecli.metrics.in_training import rows
from stagecli.recipe.messages import explain
from stagecli.recipe.signature import flatten
from stagecli.recipe.source import (
    STUDY_SUFFIX,
    RecipeSource,
    find_recipe,
    read_source,
    shipped_studies,
)
from stagecli.recipe.toml_positions import Key
from stagecli.recipe.toml_text import read_toml_text
from stagecli.schema import Recipe
from stagecli.stage import registry
from stagecli.study.plan import OWN_KEYS, Arm, RunId, Study, flat_keys
from stagecli.study.schema import NAME, ArmSection, StudyFile

MOST_CHECKPOINTS = 200  # of a run
HINT = "`stagecli study` reads what docs/studies.md describes; recipe keys: `stagecli recipes show`"
# Keys in which arms must not differ, as prefixes: scores would not compare, and a process trains in
# one precision.
SHARED = ("task.", "data.", "evaluate.", "train.precision")
UNSHARED = ("data.workers", "data.memory_mb", "data.cache_dir")


def find_study(reference: str) -> Path:
    """Path of a study given by its path or its shipped name. Raises StageError."""
    path = Path(reference)
    if is_regular_file(path):
        return path
    names = shipped_studies()
    if reference in names:
        return names[reference]
    matches = difflib.get_close_matches(path.name.removesuffix(STUDY_SUFFIX), names, n=1)
    hint = f"did you mean `{matches[0]}`?" if matches else f"shipped: {', '.join(names)}"
    problem = "is a folder" if path.is_dir() else "no such file and no shipped study of that name"
    raise StageError(
        f"study not found: {reference}", problems=[Problem(reference, problem)], hint=hint
    )


def load_study(path: Path, folder: Path | None = None) -> Study:
    """Read and check a study file, and the recipe of every arm.

    folder: of its runs and results; default: runs/studies/NAME. Raises one StageError that lists
    every problem.
    """
    # Each key by itself.
    source = read_source(path)
    file, arms = _typed(source)
    _raise_if_any(source)
    assert file is not None

    # What does not fit together.
    study = Study(
        text=read_toml_text(path),
        name=file.name,
        recipe=_recipe_path(source, file.recipe),
        seeds=file.seeds,
        baseline=file.baseline,
        against=file.against,
        score=file.score,
        shared=flat_keys(file.set),
        arms=arms,
        folder=folder if folder is not None else Path("runs/studies") / file.name,
    )
    for key, message in (*_contradictions(study), *_reference_problems(study)):
        source.report(key, message)
    recipes = _load_recipes(study, source)
    _raise_if_any(source)

    # What does not fit between the arms.
    for key, message in _recipe_problems(study, recipes):
        source.report(key, message)
    _raise_if_any(source)
    return _completed(study, recipes)


def _raise_if_any(source: RecipeSource) -> None:
    count = len(source.problems)
    if count:
        plural = "s" if count > 1 else ""
        raise StageError(
            f"{source.path} has {count} problem{plural}", problems=source.problems, hint=HINT
        )


def _typed(source: RecipeSource) -> tuple[StudyFile | None, dict[str, Arm]]:
    """The file and its arms as far as they are valid; problems go to `source`."""
    file: StudyFile | None = None
    try:
        file = StudyFile.model_validate(source.tree)
    except ValidationError as error:
        for key, message in explain(error, model=StudyFile):
            source.report(key, message)
    seeds = file.seeds if file is not None else (0,)
    sections = source.tree.get("arms")
    arms: dict[str, Arm] = {}
    for name, section in sections.items() if isinstance(sections, Mapping) else ():
        if not isinstance(section, Mapping):
            continue  # StudyFile has refused it
        try:
            options = ArmSection.model_validate(dict(section))
        except ValidationError as error:
            known = list(ArmSection.model_fields)
            for key, message in explain(error, ("arms", name), known):
                source.report(key, message)
            continue
        arms[name] = Arm(
            name=name,
            summary=options.summary,
            seeds=seeds if options.seeds is None else options.seeds,
            overrides=flat_keys(options.set),
        )
    return file, arms


def _recipe_path(source: RecipeSource, reference: str) -> Path:
    """The recipe, by its path relative to the study or its shipped name. Raises StageError."""
    try:
        return find_recipe(reference, source.path.parent)
    except StageError as error:
        source.report(("recipe",), f"{error.problems[0].what}, got {reference!r}")
        raise StageError(
            f"{source.path} has 1 problem", problems=source.problems, hint=error.hint
        ) from None


def _contradictions(study: Study) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong) within the study file."""
    # Arms and seeds.
    names = ", ".join(study.arms)
    if not study.arms:
        yield ("arms",), "there must be at least one arm: [arms.NAME]"
    for name, arm in study.arms.items():
        if not re.fullmatch(NAME, name) or name.startswith("."):
            yield ("arms", name), "must be a name of letters, digits, `.`, `_` and `-`"
        if len(set(arm.seeds)) < len(arm.seeds):
            yield ("arms", name, "seeds"), "names a seed twice"
    if len(set(study.seeds)) < len(study.seeds):
        yield ("seeds",), "names a seed twice"
    if study.baseline not in study.arms:
        yield ("baseline",), f"there is no arm {study.baseline!r}; there are: {names}"
    for name in study.against:
        if name not in study.arms:
            yield ("against",), f"there is no arm {name!r}; there are: {names}"

    # Keys that the study sets, and what is scored.
    own: list[tuple[Key, str]] = [(("set", key), key) for key in study.shared]
    own += [
        (("arms", n, "set", key), key) for n, arm in study.arms.items() for key in arm.overrides
    ]
    for place, key in own:
        if key in OWN_KEYS:
            yield place, "is set by the study itself (seeds, score.steps)"
    steps = study.score.steps
    if any(later <= step for step, later in zip(steps, steps[1:], strict=False)):
        yield ("score", "steps"), "must be in rising order"
    elif steps[-1] // math.gcd(*steps) > MOST_CHECKPOINTS:
        yield (
            ("score", "steps"),
            f"need a checkpoint every {math.gcd(*steps)} steps: choose steps with a larger common "
            "divisor",
        )
    if len(set(study.score.strengths)) < len(study.score.strengths):
        yield ("score", "strengths"), "names a strength twice"


def _reference_problems(study: Study) -> Iterator[tuple[Key, str]]:
    """References `{arm@next}` to runs that there are not, and circles of them."""
    graph: dict[RunId, list[RunId]] = {}
    for name, arm in study.arms.items():
        for key, other, which in arm.references():
            for seed in arm.seeds:
                try:
                    needed = study.referenced(other, which, seed)
                except ValueError as error:
                    yield ("arms", name, "set", key), str(error)
                    break
                graph.setdefault(RunId(name, seed), []).append(needed)
    for key, value in study.shared.items():
        if isinstance(value, str) and "@" in value and "{" in value:
            yield ("set", key), "references to other arms belong into [arms.NAME.set]"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = [str(run) for run in error.args[1]]
        arm = error.args[1][0].arm
        text = f"the runs wait for each other in a circle: {' <- '.join(circle)}"
        yield ("arms", arm, "set"), text


def _load_recipes(study: Study, source: RecipeSource) -> dict[str, Recipe]:
    """The recipe of every arm, with its first seed; problems go to `source`, each once."""
    recipes: dict[str, Recipe] = {}
    arms_of: dict[tuple[str, str, str | None], list[str]] = {}
    for name, arm in study.arms.items():
        run = RunId(name, arm.seeds[0])
        try:
            recipes[name] = study.load_recipe(run)
        except ValueError:  # a reference that leads nowhere, which is reported already
            continue
        except StageError as error:
            for problem in error.problems:
                where, excerpt = _place(study, source, name, problem)
                arms_of.setdefault((where, problem.what, excerpt), []).append(name)
    for (where, what, excerpt), names in arms_of.items():
        whom = "all arms" if len(names) == len(study.arms) else f"arm {', '.join(names)}"
        source.problems.append(Problem(where, f"{whom}: {what}", excerpt))
    return recipes


def _place(
    study: Study, source: RecipeSource, arm: str, problem: Problem
) -> tuple[str, str | None]:
    """(place, source line) of a problem with an arm's recipe, in the study file if it is there."""
    key = problem.where.removeprefix("--set ").partition("=")[0]
    if not problem.where.startswith("--set "):
        return problem.where, problem.excerpt
    owner: Key = ("set",)
    if key in study.arms[arm].overrides:
        owner = ("arms", arm, "set")
    for place in ((*owner, key), (*owner, *key.split(".")), owner):
        if place in source.places:
            path, position = source.places[place]
            return f"{path}:{position.line}:{position.column}", position.text
    return f"{source.path}:1:1", None


def _recipe_problems(study: Study, recipes: Mapping[str, Recipe]) -> Iterator[tuple[Key, str]]:
    """What does not fit between the study and the recipes of its arms."""
    # The budget.
    steps = {name: recipe.train.steps for name, recipe in recipes.items()}
    wrong = {name: budget for name, budget in steps.items() if budget != study.steps}
    if wrong:
        listed = ", ".join(f"{budget} in arm {name}" for name, budget in wrong.items())
        yield ("score", "steps"), f"the last must be train.steps, which is {listed}"

    # Scores compare only where data and evaluation are the same.
    first = recipes[study.baseline]
    theirs = flatten(first)
    for name, recipe in recipes.items():
        for key, value in flatten(recipe).items():
            shared = key.startswith(SHARED) and key not in UNSHARED
            if shared and value != theirs.get(key):
                place = ("arms", name, "set", key)
                yield place, "must be the same in all arms: set it in [set]"

    # Scores that there are.
    if first.task.kind == "sr" and study.score.strengths:
        yield ("score", "strengths"), "applies to t2a only; cutoffs are those of evaluate.cutoffs"
    primary = study.score.primary
    names = [row.partition("/")[2] for row in rows(first)]
    if primary and primary not in names and not primary.startswith("prompt_accuracy:"):
        near = difflib.get_close_matches(primary, names, n=1)
        known = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(names)}"
        yield ("score", "primary"), f"there is no score {primary!r}; {known}"


def _completed(study: Study, recipes: Mapping[str, Recipe]) -> Study:
    """The study with what follows from its recipes."""
    baseline = recipes[study.baseline]
    task = baseline.task.kind
    score = study.score
    updates: dict[str, Any] = {}
    if task == "t2a" and not score.strengths:
        updates["strengths"] = (baseline.evaluate.cfg_scale,)
    if not score.primary:
        updates["primary"] = "kad" if task == "t2a" else "lsd"
    adaptive = {name: registry.adapts_density(recipe.stage) for name, recipe in recipes.items()}
    return replace(
        study,
        task=task,
        score=score.model_copy(update=updates),
        arms={name: replace(arm, adaptive=adaptive[name]) for name, arm in study.arms.items()},
    )
