"""Keys of `[data]` without a recipe around them, as `--set` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagecli.errors import Problem, StageError
from stagecli.recipe.messages import explain
from stagecli.recipe.source import RecipeSource
from stagecli.schema import Data

REQUIRED: dict[str, Any] = {"sample_rate": 384_000, "seconds": 1.0}  # stand-ins
SECTION = "data"


def data_keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of `[data]` that `--set` arguments give.

    Raises one StageError with every unknown key and wrong value, and every key of another section.
    """
    source = RecipeSource(path=Path("--set"), tree={}, places={})
    source.override(overrides)
    keys = source.tree.pop(SECTION, {})
    for section in source.tree:
        source.report((section,), f"only keys of [{SECTION}] can be set here")
    try:
        Data.model_validate({**REQUIRED, **keys} if isinstance(keys, dict) else keys)
    except ValidationError as error:
        for key, message in explain(error, (SECTION,), list(Data.model_fields)):
            source.report(key, message)
    if source.problems:
        raise StageError(
            "cannot check the data with these keys",
            problems=[Problem(problem.where, problem.what) for problem in source.problems],
            hint="`stagecli recipes show quickstart` lists every key of [data] with its meaning",
        )
    return dict(keys)
