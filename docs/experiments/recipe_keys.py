"""Write what is made from the models of recipes: the JSON schema, and docs/recipe-keys.md.

    python docs/experiments/recipe_keys.py

Run it after a key, a default or a docstring has changed; a test compares the files.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from stagecli.recipe.dump import toml_literal
from stagecli.recipe.json_schema import schema_json
from stagecli.recipe.keys import SCHEMA_FILE, RecipeKey, recipe_keys

PAGE = Path(__file__).parents[1] / "recipe-keys.md"
HEAD = """# Recipe keys

Every key of a recipe: its type and range, its default, and its meaning. This page is made from
the models that check recipes, by `docs/experiments/recipe_keys.py`; `stagecli recipes show NAME`
prints the same of one recipe, with its values.

A recipe may start with `extends = "RECIPE"`, the name of a shipped recipe or a path relative to
the file, and then lists only what differs. Every key can also be set with
`--set section.key=VALUE`; the shell completes keys and their choices
(`stagecli --install-completion`).

Editors that know TOML (with Taplo or Even Better TOML) complete and check keys by the JSON schema
that the first line of a recipe names: `#:schema file:///...`. `stagecli recipes copy` and `show`
write that line, and `stagecli recipes schema` prints the schema.
"""
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
}


def write_files() -> list[Path]:
    """Write both files; their paths."""
    SCHEMA_FILE.write_text(schema_json(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    return [SCHEMA_FILE, PAGE]


def page() -> str:
    """The reference page, of the keys in the schema file."""
    parts = [HEAD]
    for section, keys in groupby(recipe_keys(), lambda key: key.name.rpartition(".")[0]):
        rows = [row(key) for key in keys]
        head = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"## `[{section}]`", "", *head, *rows, ""]))
    return "\n".join(parts)


def row(key: RecipeKey) -> str:
    """A line of a table."""
    name = key.name.rpartition(".")[2]
    default = "required" if key.is_required else default_of(key.schema)
    cells = [f"`{name}`", type_of(key.schema), default, key.meaning]
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def default_of(schema: dict[str, Any]) -> str:
    """A default as it is written in TOML; a dash for a key that is unset."""
    return f"`{toml_literal(schema['default'])}`" if "default" in schema else "-"


def type_of(schema: dict[str, Any]) -> str:
    """The type of a value, and its range, in words."""
    if "enum" in schema:
        return ", ".join(f"`{toml_literal(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{toml_literal(schema['const'])}`"
    if "anyOf" in schema:
        return ", or ".join(type_of(branch) for branch in schema["anyOf"])
    if schema.get("type") == "array":
        item = schema.get("items") or schema["prefixItems"][0]
        least = schema.get("minItems")
        most = schema.get("maxItems")
        count = f"{most}" if least == most else f"{least} to {most:,}"
        return f"list{f' of {count}' if most else ''}: {type_of(item)}"
    name = TYPES.get(schema.get("type", ""), "text")
    return f"{name}{limits(schema)}"


def limits(schema: dict[str, Any]) -> str:
    """The range of a number."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None or high is None:
        return ""
    if "exclusiveMinimum" in schema or "exclusiveMaximum" in schema:
        lower = "above" if "exclusiveMinimum" in schema else "at least"
        upper = "below" if "exclusiveMaximum" in schema else "at most"
        return f", {lower} {shown(low)}, {upper} {shown(high)}"
    return f", {shown(low)} to {shown(high)}"


def shown(number: float) -> str:
    """A limit with grouped digits."""
    if number == 2**63 - 1:
        return "2^63 - 1"
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


if __name__ == "__main__":
    for path in write_files():
        print(f"wrote {path}")
