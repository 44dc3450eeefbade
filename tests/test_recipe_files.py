"""Recipes as files: TOML out and in, signatures, `extends`, shipped recipes, documented keys."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import SR, T2A, by_place, refuse, write

import stagecli
from stagecli.recipe.dump import dump_recipe, key_docs, standalone_text
from stagecli.recipe.load import load_recipe, read_about
from stagecli.recipe.signature import UNSIGNED, signature
from stagecli.recipe.source import shipped_recipes
from stagecli.schema import Recipe
from stagecli.stage import registry

SHIPPED = shipped_recipes()
FAMILIES = ["fsdd-t2a", "esc10-t2a", "esc10-sr", "audiocaps-t2a", "vctk-sr-48k"]
SECTIONS = [name for name in Recipe.model_fields if name != "stage"]


# --- out and in -----------------------------------------------------------------------------------

words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n"), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(
    summary=words,
    lr=st.floats(1e-9, 100),
    betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    width=st.none() | st.sampled_from([6, 96, 192]),
    cutoff=st.tuples(st.floats(1, 3999), st.integers(4000, 7999)),
    compiled=st.sampled_from(["none", "blocks", "step"]),
    vocoder=words.filter(lambda text: "${" not in text),
)
def test_dump_loads_as_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    summary: str,
    lr: float,
    betas: tuple[float, float],
    width: int | None,
    cutoff: tuple[float, int],
    compiled: str,
    vocoder: str,
) -> None:
    tree = tomllib.loads(SR)
    tree["about"] = {"summary": summary}
    tree["train"] |= {"lr": lr, "betas": betas, "compile": compiled}
    tree["model"] = {"width": width, "patch": 2}
    tree["condition"]["cutoff"] = cutoff
    tree["codec"]["vocoder"] = vocoder
    recipe = Recipe.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    for documented in (False, True):
        text = dump_recipe(recipe, documented=documented)
        path.write_text(text, encoding="utf-8", newline="")
        again = load_recipe(path)
        assert again == recipe
        assert signature(again) == signature(recipe)


def test_the_dump_writes_every_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SR))
    tree = tomllib.loads(dump_recipe(recipe))
    assert tree["train"]["lr"] == recipe.train.lr
    assert set(tree["evaluate"]) == set(type(recipe.evaluate).model_fields)
    assert "# Optimiser steps." in dump_recipe(recipe, documented=True)


def test_unsigned_keys_do_not_change_the_signature(tmp_path: Path) -> None:
    path = write(tmp_path, SR)
    plain = signature(load_recipe(path))
    unsigned = [
        "about.name=other",
        "about.summary=s",
        "evaluate.steps=7",
        "evaluate.cutoffs=[2000]",
        "data.workers=0",
        "data.memory_mb=1",
        "data.cache_dir=elsewhere",
        "data.path=elsewhere",
        'data.on_bad_file="skip"',
        "train.steps=99",
        "train.log_every=3",
        "train.keep=9",
        "train.accumulate=2",
        "train.activation_checkpointing=true",
        "train.checkpoint_every=5",
        "train.sample_every=0",
        "train.samples=1",
        "train.validate_every=0",
        "train.validate_clips=3",
        "train.validate_t=[0.5]",
    ]
    for flag in unsigned:
        assert signature(load_recipe(path, [flag])) == plain, flag
    assert signature(load_recipe(path, unsigned)) == plain
    signed = [
        "train.lr=1e-5",
        "train.seed=1",
        "data.seconds=2",
        "codec.alpha=0.5",
        "model.size=S",
    ]
    for flag in signed:
        assert signature(load_recipe(path, [flag])) != plain, flag


def test_unsigned_keys_exist() -> None:
    """A key that is renamed must not silently become part of the signature."""
    for section, names in UNSIGNED.items():
        keys = key_docs(section)
        assert keys
        assert set(names or ()) <= set(keys)


# --- extends --------------------------------------------------------------------------------------

CHILD = """\
# A comment worth keeping.
extends = "base.toml"

[about]
name = "child"

[train]
lr = 0.25

[stage.regime]
clips = 4
"""


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    write(tmp_path, f'[about]\nname = "base"\n{T2A}lr = 0.5\nclip = 2.0\n', "base.toml")
    (tmp_path / "folder").mkdir()
    child = write(tmp_path / "folder", CHILD.replace("base.toml", "../base.toml"))
    recipe = load_recipe(child, ["train.clip=3"])
    assert recipe.about.name == "child"
    assert (recipe.train.steps, recipe.train.lr, recipe.train.clip) == (10, 0.25, 3)
    assert recipe.stage["regime"]["clips"] == 4


def test_about_is_not_inherited(tmp_path: Path) -> None:
    """A child without a name of its own must not resume the run of its parent."""
    write(tmp_path, f'[about]\nname = "base"\nsummary = "s"\n{T2A}', "base.toml")
    recipe = load_recipe(write(tmp_path, 'extends = "base.toml"\n'))
    assert (recipe.about.name, recipe.about.summary) == ("", "")


def test_mistakes_are_placed_in_the_file_that_makes_them(tmp_path: Path) -> None:
    base = write(tmp_path, T2A + 'lrr = 1\nclip = "x"\n', "base.toml")
    child = write(tmp_path, CHILD + "\n[model]\nwidht = 3\n")
    error = refuse(child, ["train.steps=0"])
    assert error.message == f"{child} has 4 problems"
    assert list(by_place(error)) == [
        "--set train.steps=0",
        f"{child}:14:1",
        f"{base}:16:1",
        f"{base}:17:1",
    ]


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ('"nowhere.toml"', "no such recipe file", "recipes list"),
        ('"quickstrt"', "no shipped recipe of that name", "did you mean `quickstart`?"),
        ("3", "must be text", "shipped recipe"),
        ('"recipe.toml"', "extends another recipe itself", "complete"),
    ],
)
def test_a_bad_extends_names_its_line(tmp_path: Path, value: str, message: str, hint: str) -> None:
    path = write(tmp_path, f"# comment\nextends = {value}\n")
    error = refuse(path)
    assert [problem.where for problem in error.problems] == [f"{path}:2:1"]
    assert message in error.problems[0].what
    assert hint in (error.hint or "")


def test_a_broken_parent_is_named(tmp_path: Path) -> None:
    base = write(tmp_path, "[task", "base.toml")
    error = refuse(write(tmp_path, CHILD))
    assert error.problems[0].where.startswith(f"{base}")


def test_extends_cannot_be_set_by_a_flag(tmp_path: Path) -> None:
    error = refuse(write(tmp_path, T2A), ["extends=quickstart"])
    assert "in a recipe file only" in error.problems[0].what


def test_the_standalone_text_says_the_same_without_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDS", "/data/sounds")
    text = T2A.replace("seconds = 1.0", 'seconds = 1.0\npath = "${SOUNDS}/a"')
    base = write(tmp_path, text, "base.toml")
    child = write(tmp_path, CHILD)
    recipe = load_recipe(child)
    alone = standalone_text(child)
    assert standalone_text(base) == base.read_text()
    base.unlink()
    assert load_recipe(write(tmp_path, alone, "alone.toml")) == recipe
    assert alone.startswith("# A comment worth keeping.\n")
    assert 'path = "${SOUNDS}/a"' in alone
    assert "extends" not in alone
    assert "batch_size" not in alone, "defaults are not written out"


def test_the_standalone_text_of_any_toml_is_that_toml(tmp_path: Path) -> None:
    """Invalid recipes too: the copy is what somebody corrects."""
    odd = '"a key" = 1979-05-27\nx = { y = [1, { z = inf }], "q.r" = "s" }\n'
    write(tmp_path, odd + "[stage]\nplain = 1\n[data]\nx.y = 2\n", "base.toml")
    child = write(tmp_path, 'extends = "base.toml"\n[data]\nx.z = 3\n')
    tree = tomllib.loads(standalone_text(child))
    expected = tomllib.loads(odd)
    expected |= {"stage": {"plain": 1}, "data": {"x": {"y": 2, "z": 3}}}
    assert tree == expected


# --- shipped recipes ------------------------------------------------------------------------------


def test_there_are_shipped_recipes() -> None:
    assert {"quickstart", "quickstart-sr", "studies/digits"} <= set(SHIPPED)
    assert not any(path.name.endswith(".study.toml") for path in SHIPPED.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    path = SHIPPED[name]
    recipe = load_recipe(name)
    assert recipe.about.name == path.stem
    assert recipe.about.summary.strip()
    assert recipe.about.needs.strip()
    assert not recipe.about.summary.endswith(".")
    assert read_about(path)["summary"] == recipe.about.summary

    dumped = write(tmp_path, dump_recipe(recipe))
    assert signature(load_recipe(dumped)) == signature(recipe)
    copied = write(tmp_path, standalone_text(path))
    assert load_recipe(copied) == recipe
    options = tomllib.loads(copied.read_text(encoding="utf-8"))
    assert {"steps", "checkpoint_every"} <= set(options["train"])


@pytest.mark.parametrize("name", FAMILIES)
def test_twins_differ_in_their_stages_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    static = load_recipe(f"{name}-static")
    stage = load_recipe(f"{name}-stage")
    assert not static.stage
    assert set(stage.stage) == {"regime", "guidance", "timesteps", "structure"}
    others = {"about", "stage"}
    assert static.model_dump(exclude=others) == stage.model_dump(exclude=others)
    text = shipped_recipes()[f"{name}-stage"].read_text(encoding="utf-8")
    assert set(tomllib.loads(text)) == {"extends", "about", "stage"}


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [*SECTIONS, *(f"stage.{name}" for name in registry.MECHANISMS)])
def test_every_key_is_documented(section: str) -> None:
    docs = key_docs(section)
    assert docs
    assert [key for key, text in docs.items() if not text.strip()] == []


def attributes_read() -> set[str]:
    """Every `x` in `object.x` anywhere in the package outside the schema."""
    root = Path(stagecli.__file__).parent
    names = set()
    for path in root.rglob("*.py"):
        if path.parent.name != "schema" and path.name != "schema.py":
            nodes: Any = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names


def test_every_key_is_read_somewhere() -> None:
    read_raw = {"about.summary", "about.needs"}  # `recipes list` reads them without a check
    keys = {(section, key) for section in SECTIONS for key in key_docs(section)}
    names = attributes_read() | {"width", "depth", "heads"}  # by `Model.resolved`
    unread = {f"{section}.{key}" for section, key in keys if key not in names}
    assert unread - read_raw == set()
