"""What the machine cannot hold is told before any work on the data; encoders are loaded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, write_recipe

from stagecli.data.loader import example_bytes
from stagecli.errors import EXIT_USAGE
from stagecli.recipe.load import load_recipe
from stagecli.train import encoders, scorer, shared_memory
from stagecli.train.encoders import load_frozen
from stagecli.train.prepare import prepare
from stagecli.train.shared_memory import least_example_bytes

Cli = Callable[..., Result]

GUIDED = {"stage__guidance__schedule": "constant", "stage__guidance__hidden": 16}


@pytest.fixture
def no_data_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the data is opened."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the data was opened before the machine was looked at")

    monkeypatch.setattr("stagecli.train.data_check.open_source", opened)


@pytest.mark.usefixtures("no_data_work")
def test_too_little_shared_memory_is_refused_before_the_data(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: 400_000)
    result = cli("train", write_recipe(tmp_path / "r.toml", data__workers=4))
    assert result.code == EXIT_USAGE, result.stderr
    assert "do not fit into shared memory" in result.stderr
    assert "--set data.workers=1 fits" in result.stderr


@pytest.mark.usefixtures("no_data_work")
def test_too_large_a_model_is_refused_before_the_data(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", model__width=16384, model__depth=128)
    result = cli("train", recipe)
    assert result.code == EXIT_USAGE, result.stderr
    assert "training needs at least" in result.stderr


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("t2a", {}),
        ("t2a", {"data__padding": "mask"}),
        ("t2a", GUIDED),
        ("sr", {}),
        ("sr", {"data__padding": "mask", **GUIDED}),
    ],
)
def test_the_size_that_is_known_early_is_that_of_an_example_but_for_its_caption(
    kind: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write_recipe(tmp_path / "r.toml", kind, data__clips=6, **changes))
    cpu = torch.device("cpu")
    least = least_example_bytes(recipe, load_frozen(recipe, cpu))
    prepared = prepare(recipe, None, cpu, lambda *_: None)
    whole = example_bytes(prepared.examples(prepared.train, features=True))
    assert least <= whole <= least + 8 + 8 * recipe.condition.max_length  # index, bytes of the text


def test_every_encoder_is_loaded_once(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once more by the next start; the dry run does the same."""
    loaded: list[str] = []
    original = encoders.open_encoder

    def counting(name: str, *args: Any) -> Any:
        loaded.append(name)
        return original(name, *args)

    for module in (encoders, scorer):
        monkeypatch.setattr(module, "open_encoder", counting)
    recipe = write_recipe(
        tmp_path / "r.toml",
        train__steps=2,
        train__evaluate_every=2,
        train__evaluate_clips=4,
        stage__regime__monitor="bundled:teacher",
        stage__regime__clips=4,
        stage__regime__every=2,
        **GUIDED,
    )
    for command in (("train", recipe, "--dry-run"), ("train", recipe), ("train", recipe)):
        loaded.clear()
        result = cli(*command)
        assert result.code == 0, result.stderr
        assert sorted(loaded) == ["bundled:judge", "bundled:teacher", "bundled:teacher"]
