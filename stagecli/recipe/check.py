"""Check a parsed recipe and report every problem at once."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagecli.errors import Problem, StageError
from stagecli.recipe.consistency import find_contradictions, find_unscorable
from stagecli.recipe.messages import error_key, explain
from stagecli.recipe.parts import find_missing_parts
from stagecli.recipe.source import RecipeSource
from stagecli.recipe.toml_positions import Key
from stagecli.schema import Recipe

MOST_PROBLEMS = 50  # listed at once, of each kind
# Values for required keys that are missing, chosen so that they contradict nothing.
STAND_INS: dict[tuple[str, str], Any] = {
    ("task", "kind"): "t2a",
    ("data", "sample_rate"): 384_000,
    ("data", "seconds"): 1.0,
    ("codec", "kind"): "mel",
    ("train", "steps"): 1,
}
# Keys whose checks depend on the task; they are not judged by a stand-in for `task.kind`.
TASK_KEYS = {
    ("condition", "cutoff"),
    ("condition", "text"),
    ("codec", "kind"),
    ("evaluate", "cutoffs"),
}


def check_recipe(source: RecipeSource, *, to_train: bool) -> Recipe:
    """The recipe, with the defaults of its `[stage.*]` sections filled in.

    to_train: whatever training needs must be there; a run's recipe is read without it.

    Raises one StageError that lists all problems: those already in `source`, those of single keys,
    and contradictions between keys.
    """
    # Single keys: types, ranges, unknown and missing ones.
    recipe: Recipe | None
    refused: set[Key] = set()
    try:
        recipe = Recipe.model_validate(source.tree)
    except ValidationError as error:
        for key, message in islice(explain(error), MOST_PROBLEMS):
            source.report(key, message)
        refused = {error_key(item) for item in error.errors()}
        recipe = _validate_without(source.tree, refused)

    # Contradictions, also among the keys that are left when some were refused.
    if recipe is not None:
        task_is_known = ("task", "kind") not in refused
        for key, message in islice(find_contradictions(recipe), MOST_PROBLEMS):
            if key not in refused and (task_is_known or key not in TASK_KEYS):
                source.report(key, message)

    if source.problems or recipe is None:
        raise _refusal(source)
    recipe = _with_stage_defaults(recipe)

    # What could never be scored, and what it names and cannot be had.
    if to_train:
        for key, message in (*find_unscorable(recipe), *find_missing_parts(recipe)):
            source.report(key, message)
        if source.problems:
            raise _refusal(source)
    return recipe


def _refusal(source: RecipeSource) -> StageError:
    count = len(source.problems)
    least = "at least " if count >= MOST_PROBLEMS else ""
    return StageError(
        f"{source.path} has {least}{count} problem{'s' if count > 1 else ''}",
        problems=sorted(source.problems, key=lambda problem: _order(problem, source.path)),
        hint="`stagecli recipes show quickstart` lists every key with its meaning",
    )


def _order(problem: Problem, path: Path) -> tuple[int, int]:
    """Sorts problems without a source line first, then the recipe's own, then inherited ones."""
    if problem.excerpt is None:
        return 0, 0
    file, line, _ = problem.where.rsplit(":", 2)
    return (1 if file == str(path) else 2), int(line)


def _validate_without(tree: dict[str, Any], refused: set[Key]) -> Recipe | None:
    """The recipe without the refused keys, with stand-ins for required ones; None if still invalid.

    Only to find further problems in what is left.
    """
    tree = copy.deepcopy(tree)
    for key in refused:
        _remove(tree, key)
    for (section, name), value in STAND_INS.items():
        options = tree.setdefault(section, {})
        if isinstance(options, dict):
            options.setdefault(name, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError:
        return None


def _remove(tree: dict[str, Any], key: Key) -> None:
    """Remove a key; for an item of a list, the whole list."""
    node = tree
    for name in key[:-1]:
        inner = node.get(name)
        if not isinstance(inner, dict):
            node.pop(name, None)
            return
        node = inner
    node.pop(key[-1], None)


def _with_stage_defaults(recipe: Recipe) -> Recipe:
    """Fill in the defaults of `[stage.*]`, whose sections the schema leaves as dictionaries."""
    if not recipe.stage:
        return recipe
    from stagecli.stage import registry

    stage = {
        name: registry.options(name, options).model_dump() for name, options in recipe.stage.items()
    }
    return recipe.model_copy(update={"stage": stage})
