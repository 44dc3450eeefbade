"""`stagecli bench` measures a recipe and keeps nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conftest import Result, write_recipe

Cli = Callable[..., Result]


def test_it_measures_speed_shares_and_memory(cli: Cli, tmp_path: Path) -> None:
    stages = {"stage__regime__every": 3, "stage__regime__clips": 4}
    recipe = write_recipe(tmp_path / "r.toml", train__steps=20, **stages)
    result = cli("bench", recipe, "--steps", 4, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["steps"], document["device"], document["compile"]) == (4, "cpu", "none")
    assert document["samples_per_s"] == 4 * document["steps_per_s"]
    assert document["audio_s_per_s"] == document["samples_per_s"] * 0.4
    assert 0 < document["data_wait"] < 1
    assert 0 < document["probes"] < 1
    assert document["mechanisms"] < 1
    assert document["peak_memory_bytes"] > 2**26
    assert document["steps_per_s"] < 1 / document["step_s"]
    assert {path.name for path in tmp_path.iterdir()} == {"r.toml"}


def test_a_static_recipe_has_no_shares_of_stages(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench", write_recipe(tmp_path / "r.toml", "sr"), "--steps", 2)
    assert result.code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["probes", "0.0", "%"] in lines
    assert ["mechanisms", "0.0", "%"] in lines


def test_more_steps_than_the_recipe_has(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    result = cli("bench", recipe, "--steps", 50)
    assert result.code == 2
    assert "train.steps" in result.stderr and "--steps 7" in result.stderr
    assert cli("bench", recipe, "--steps", 0).code == 2
