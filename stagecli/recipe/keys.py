"""Every key of a recipe as the package's JSON schema describes it: for completion and reference.

The file is made from the models of `schema/` and of the mechanisms (`recipe/json_schema.py`); to
read it takes neither pydantic nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_FILE = Path(__file__).parents[1] / "schema" / "recipe.schema.json"
DIRECTIVE = "#:schema "  # begins the comment in which editors look for the schema of a TOML file


@dataclass(frozen=True)
class RecipeKey:
    """name: such as `train.lr`; schema: that of its values; is_required: has no default."""

    name: str
    schema: dict[str, Any]
    is_required: bool

    @property
    def meaning(self) -> str:
        """What the key does, in a sentence or two."""
        return str(self.schema.get("description", ""))

    @property
    def choices(self) -> list[str]:
        """The words that the key may have, where they are few and known."""
        if self.schema.get("type") == "boolean":
            return ["true", "false"]
        return [str(value) for value in self.schema.get("enum", [])]


def schema_text() -> str:
    """The JSON schema of recipes."""
    return SCHEMA_FILE.read_text(encoding="utf-8")


def recipe_keys() -> list[RecipeKey]:
    """Every key, section by section, in the order of the schema."""
    document = json.loads(schema_text())
    required = document["then"]
    return list(_keys("", document, required))


def _keys(prefix: str, section: dict[str, Any], required: dict[str, Any]) -> Iterator[RecipeKey]:
    for name, schema in section["properties"].items():
        if "properties" in schema:
            inner = required.get("properties", {}).get(name, {})
            yield from _keys(f"{prefix}{name}.", schema, inner)
        elif prefix:  # not `extends`, which is no setting
            yield RecipeKey(f"{prefix}{name}", schema, name in required.get("required", []))


def with_schema_line(text: str) -> str:
    """The text of a recipe, begun with the comment that tells editors its schema."""
    first, _, rest = text.partition("\n")
    body = rest if first.startswith(DIRECTIVE) else text
    return f"{DIRECTIVE}{SCHEMA_FILE.as_uri()}\n{body}"
