"""The JSON schema of recipes and the page of keys: equal to the models they are made from."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_results import Cli
from conftest import write_recipe
from helpers.source import REPOSITORY

from stagecli.recipe.json_schema import build_schema, schema_json
from stagecli.recipe.keys import DIRECTIVE, SCHEMA_FILE, recipe_keys, with_schema_line
from stagecli.recipe.source import shipped_recipes
from stagecli.recipe.toml_text import parse_toml
from stagecli.schema import Recipe
from stagecli.stage import registry

SCRIPT = REPOSITORY / "docs" / "experiments" / "recipe_keys.py"
AGAIN = "run: python docs/experiments/recipe_keys.py"


def test_the_schema_and_the_page_are_those_of_the_models() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_json(), AGAIN
    page = (REPOSITORY / "docs" / "recipe-keys.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(SCRIPT))["page"](), AGAIN


def test_every_key_has_its_meaning_and_default() -> None:
    keys = {key.name: key for key in recipe_keys()}
    assert all(key.meaning for key in keys.values())
    for section, field in Recipe.model_fields.items():
        if section != "stage":
            model: Any = field.annotation
            assert {name for name in keys if name.startswith(f"{section}.")} >= {
                f"{section}.{name}" for name in model.model_fields
            }
    for name in registry.MECHANISMS:
        assert any(key.startswith(f"stage.{name}.") for key in keys)
    assert {name for name, key in keys.items() if key.is_required} == {
        "task.kind",
        "data.sample_rate",
        "data.seconds",
        "codec.kind",
        "train.steps",
    }
    assert keys["train.lr"].schema["exclusiveMinimum"] == 0
    assert keys["train.compile"].choices == ["none", "blocks", "step"]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    document = build_schema()
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_fit_the_schema(
    name: str, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(parse_toml(shipped_recipes()[name].read_text()))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"train__stepz": 3}, ["train"]),
        ({"train__lr": 0}, ["train", "lr"]),
        ({"train__steps": 1.5}, ["train", "steps"]),
        ({"codec__kind": "mdtc"}, ["codec", "kind"]),
        ({"evaluate__cfg_interval": [0.1]}, ["evaluate", "cfg_interval"]),
        ({"stage.guidance__layer": "mean"}, None),
        ({"stage.guidance__layer": "all"}, ["stage", "guidance", "layer"]),
        ({"stage.guidence__weight": 1.0}, ["stage"]),
        ({"train__steps": None}, ["train"]),
    ],
)
def test_the_schema_finds_what_loading_finds(
    changes: dict[str, Any],
    place: list[str] | None,
    *,
    tmp_path: Path,
    validator: jsonschema.Draft202012Validator,
) -> None:
    tree = parse_toml(write_recipe(tmp_path / "r.toml", **changes).read_text())
    places = [list(error.path) for error in validator.iter_errors(tree)]
    assert places == ([] if place is None else [place])


def test_copied_and_shown_recipes_name_the_schema(cli: Cli, tmp_path: Path) -> None:
    for text in (
        cli("recipes", "show", "quickstart").stdout,
        (cli("recipes", "copy", "quickstart", "mine.toml"), tmp_path / "mine.toml")[1].read_text(),
    ):
        assert text.startswith(f"{DIRECTIVE}file:///")
        assert text.count(DIRECTIVE) == 1
        parse_toml(text)
    first = (tmp_path / "mine.toml").read_text()
    assert with_schema_line(first) == first
    assert json.loads(cli("recipes", "schema").stdout) == build_schema()
    assert cli("recipes", "check", "mine.toml").code == 0
