"""The JSON schema of recipes, made from the models: editors complete and check recipes by it.

It says less than loading a recipe does: nothing about keys that contradict each other.
"""

from __future__ import annotations

import json
from typing import Any

from stagecli.schema import Recipe
from stagecli.stage import registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = {
    "type": "string",
    "description": "A shipped recipe, or a path relative to this file, whose keys are the defaults "
    "of this recipe.",
}
# Words of pydantic's that tell an editor nothing.
DROPPED = ("title", "propertyNames")


def build_schema() -> dict[str, Any]:
    """The schema of a whole recipe, the mechanisms' sections included.

    A recipe that extends another need not have the keys that others must have.
    """
    whole = Recipe.model_json_schema()
    document = _plain(whole, whole.get("$defs", {}))
    sections = document["properties"]
    sections["stage"] = {
        "type": "object",
        "description": sections["stage"]["description"],
        "additionalProperties": False,
        "properties": {name: _mechanism(name) for name in registry.MECHANISMS},
    }
    required = _take_required(document)
    return {
        "$schema": DIALECT,
        "title": "Recipe of stagecli",
        "description": document["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": {"extends": EXTENDS, **sections},
        "if": {"not": {"required": ["extends"]}},
        "then": required,
    }


def schema_json() -> str:
    """The schema as the text of its file."""
    return json.dumps(build_schema(), indent=1, ensure_ascii=False) + "\n"


def _mechanism(name: str) -> dict[str, Any]:
    options = registry.load(name).Options.model_json_schema()
    section = _plain(options, options.get("$defs", {}))
    _take_required(section)  # a section may be empty
    return section


def _plain(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references, without null, which TOML lacks, and without idle words."""
    if isinstance(node, list):
        return [_plain(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _plain({**target, "description": _description(node, target)}, definitions)
    kept = {
        key: _plain(value, definitions)
        for key, value in node.items()
        if key not in (*DROPPED, "$defs") and not (key == "default" and value is None)
    }
    branches = [branch for branch in kept.get("anyOf", []) if branch != {"type": "null"}]
    if len(branches) == 1:
        del kept["anyOf"]
        return {**branches[0], **kept}
    return {**kept, "anyOf": branches} if branches else kept


def _description(node: dict[str, Any], target: dict[str, Any]) -> str:
    return str(node.get("description") or target.get("description", ""))


def _take_required(section: dict[str, Any]) -> dict[str, Any]:
    """Move what a section requires, itself and in its sections, to a schema of its own."""
    inner = {
        name: _take_required(schema)
        for name, schema in section.get("properties", {}).items()
        if "properties" in schema
    }
    required: dict[str, Any] = {}
    if "required" in section:
        required["required"] = section.pop("required")
    needed = {name: schema for name, schema in inner.items() if schema}
    return {**required, "properties": needed} if needed else required
