"""Every mechanism by its `[stage.NAME]` table, in the order in which plans are folded. No torch."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

# name -> "module:class"; the class has `Options`, a pydantic model of its table. Regime comes first.
MECHANISMS: dict[str, str] = {
    "regime": "stagecli.stage.regime:RegimeMechanism",
    "guidance": "stagecli.stage.guidance:GuidanceMechanism",
    "timesteps": "stagecli.stage.timesteps:TimestepsMechanism",
    "structure": "stagecli.stage.structure:StructureMechanism",
}


def load(name: str) -> Any:
    """The class of a mechanism."""
    module, _, cls = MECHANISMS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def options(name: str, table: Mapping[str, Any]) -> Any:
    """The `[stage.NAME]` table with its defaults. Raises pydantic's ValidationError."""
    return load(name).Options.model_validate(dict(table))


def unknown(name: str) -> str | None:
    """What is wrong with the name of a mechanism, or None."""
    if name in MECHANISMS:
        return None
    near = difflib.get_close_matches(name, MECHANISMS, n=1)
    return "no such mechanism; " + (
        f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(MECHANISMS)}"
    )
