"""Every mechanism by its `[stage.NAME]` table, in the order in which plans are folded. No torch."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

# name -> "module:class"; the class has `Options`, a pydantic model of its table. Regime comes first.
MECHANISMS: dict[str, str] = {}


def load(name: str) -> Any:
    module, _, cls = MECHANISMS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def check(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key, what is wrong) of every problem in the `[stage.*]` tables of a recipe."""
    for name, options in tables.items():
        if name not in MECHANISMS:
            near = difflib.get_close_matches(name, MECHANISMS, n=1)
            known = ", ".join(MECHANISMS) or "none in this version"
            yield (
                ("stage", name),
                "no such mechanism; " + (f"did you mean `{near[0]}`?" if near else f"there are: {known}"),
            )
            continue
        try:
            load(name).Options.model_validate(options)
        except ValidationError as error:
            for item in error.errors():
                yield ("stage", name, *map(str, item["loc"])), item["msg"]
