"""What a recipe names and cannot be had is told before any work on the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, write_recipe

from stagecli.errors import EXIT_FAILED, EXIT_USAGE

Cli = Callable[..., Result]

NAMED: dict[str, dict[str, Any]] = {
    "stage.regime.monitor": {"stage__regime__monitor": "nope:x"},
    "stage.guidance.teacher": {
        "stage__guidance__teacher": "nope:x",
        "stage__guidance__schedule": "constant",
    },
    "evaluate.judge": {"evaluate__judge": "nope:x"},
    "codec.vocoder": {"codec__vocoder": "./nope/x"},
    "codec.model": {"codec__kind": "dac", "codec__model": "./nope/x"},
    "condition.model": {"condition__text": "transformers", "condition__model": "./nope/x"},
}


@pytest.fixture
def no_data_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the data is opened."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the data was opened before the encoders")

    monkeypatch.setattr("stagecli.train.data_check.open_source", opened)


@pytest.mark.usefixtures("no_data_work")
@pytest.mark.parametrize("key", NAMED)
def test_a_part_that_is_not_there_fails_at_once_at_its_line(
    key: str, cli: Cli, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", **NAMED[key])
    checked = cli("recipes", "check", recipe)
    assert checked.code == EXIT_FAILED
    for command in (("train", recipe), ("train", recipe, "--dry-run")):
        result = cli(*command)
        assert result.code == EXIT_USAGE
        for stderr in (result.stderr, checked.stderr):
            assert "nope" in stderr
            assert f"{key}: " in stderr
            assert f"{recipe}:" in stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_data_work")
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_encoder_that_cannot_be_loaded_fails_before_the_data(
    dry: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    name = f"transformers:{tmp_path / 'broken'}"
    for changes in (
        {"stage__regime__monitor": name},
        {"stage__guidance__teacher": name, "stage__guidance__schedule": "constant"},
        {"evaluate__judge": name, "train__evaluate_every": 2},
    ):
        result = cli("train", write_recipe(tmp_path / "r.toml", **changes), *dry)
        assert result.code == EXIT_USAGE, result.stderr
        assert "broken" in result.stderr


def test_every_missing_part_is_told_in_one_error(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "r.toml", stage__regime__monitor="nope:x", evaluate__judge="bundled:jugde"
    )
    result = cli("recipes", "check", recipe, "--json")
    problems = json.loads(result.stdout)["problems"]
    assert [problem["what"].partition(":")[0] for problem in problems] == [
        "evaluate.judge",
        "stage.regime.monitor",
    ]


@pytest.mark.parametrize(
    "name", ["nope:x", "bundled:x", "x", "transformers:./nope", "torchaudio:NOPE", ":", "bundled:"]
)
def test_a_judge_that_does_not_exist_is_refused_when_the_recipe_is_read(
    name: str, cli: Cli, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", evaluate__judge=name)
    result = cli("recipes", "check", recipe)
    assert result.code == EXIT_FAILED
    assert "evaluate.judge: " in result.stderr


def test_data_of_hugging_face_without_its_package(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecli.recipe.parts.find_spec", lambda name: None)
    recipe = write_recipe(tmp_path / "r.toml", data__source="huggingface", data__path="a/b")
    result = cli("recipes", "check", recipe)
    assert result.code == EXIT_FAILED
    assert "stagecli[datasets]" in result.stderr


def test_a_run_whose_judge_has_gone_is_still_sampled(cli: Cli, runs: Path) -> None:
    recipe = runs / "t2a" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("bundled:judge", "transformers:/gone/judge"))
    result = cli("sample", "runs/t2a", "-p", "hi", "--steps", "1")
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("flag", [("--judge", "nope:x"), ("--clap", "./nope/x")])
def test_evaluate_refuses_a_missing_encoder_before_the_data(
    flag: tuple[str, str], cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the run was opened before the encoders")

    monkeypatch.setattr("stagecli.evaluate.command.evaluate_runs", opened)
    result = cli("evaluate", "runs/t2a", *flag)
    assert result.code == EXIT_USAGE
    assert flag[0] in result.stderr
    assert "nope" in result.stderr
