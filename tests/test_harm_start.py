"""Where a run goes, and what a longer one does to the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import read_rows, run_cli, tree, write_recipe

from stagecli.flow.schedule import learning_rate

NAMES = {
    "the folder above": "..",
    "this folder": ".",
    "a path": "a/b",
    "a path out of runs": "../../x",
    "an absolute path": "/tmp/x",
    "a Windows path": "a\\b",
    "a control character": "a\x1b]0;x\x07",
    "a line break": "a\nb",
    "a direction override": "a\u202eb",
    "a hidden name": ".git",
    "a long name": "n" * 201,
    "a long name in bytes": "ü" * 101,
    "no name": "",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_name_that_is_not_a_plain_name_is_refused_and_writes_nothing(
    tmp_path: Path, name: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml")
    before = tree(tmp_path)
    result = run_cli("train", recipe, f"--name={name}", cwd=tmp_path)
    assert result.code == 2
    assert "--name" in result.stderr and "the name of a run" in " ".join(result.stderr.split())
    assert tree(tmp_path) == before and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["..", ".", ".git"])
def test_a_recipe_cannot_name_its_run_so_that_it_overwrites_the_users_files(
    tmp_path: Path, name: str
) -> None:
    """`about.name = ".."` would be the folder of the recipe itself."""
    recipe = write_recipe(tmp_path / "recipe.toml", about__name=name)
    before = tree(tmp_path)
    for code, *command in ((2, "train", recipe), (1, "recipes", "check", recipe)):
        result = run_cli(*command, cwd=tmp_path)
        assert result.code == code
        assert "recipe.toml" in result.stderr and "name" in result.stderr
    assert tree(tmp_path) == before


def test_the_name_of_a_recipe_file_is_checked_too(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / ".hidden.toml")
    result = run_cli("train", recipe, cwd=tmp_path)
    assert result.code == 2 and ".hidden.toml" in result.stderr and "--name" in result.stderr


def test_a_runs_dir_that_does_not_exist_yet_cannot_lead_to_the_users_files(tmp_path: Path) -> None:
    """`new/..` is this folder, though nothing says so until `new` exists."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.toml").write_text("mine")
    recipe = write_recipe(tmp_path / "r.toml", train__steps=2)
    result = run_cli("train", recipe, "--runs-dir", "new/..", "--name", "mine", cwd=tmp_path)
    assert result.code == 2 and "is not a run directory" in " ".join(result.stderr.split())
    assert (tmp_path / "mine" / "recipe.toml").read_text() == "mine"


# --- more steps -----------------------------------------------------------------------------------


def changes(run: Path) -> list[str]:
    rows = read_rows(run, "events")
    return [row["reason"] for row in rows if row["to"] == "learning rate changed"]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_more_steps_report_what_the_schedule_does(tmp_path: Path, schedule: str) -> None:
    from stagecli.recipe.load import load_recipe

    path = write_recipe(tmp_path / "t2a.toml", train__schedule=schedule, train__steps=6)
    assert run_cli("train", path, cwd=tmp_path).code == 0
    result = run_cli("train", path, "--set", "train.steps=12", cwd=tmp_path)
    assert result.code == 0, result.stderr
    run = tmp_path / "runs" / "t2a"
    if schedule == "constant":
        assert not changes(run)
        return
    (reason,) = changes(run)
    before = learning_rate(6, load_recipe(path).train)
    now = learning_rate(6, load_recipe(path, ["train.steps=12"]).train)
    assert f"rises from {before:.3g} to {now:.3g}" in reason
    ways_out = {"cosine": 'train.schedule = "constant"', "wsd": "--from-checkpoint"}
    assert ways_out[schedule] in reason
    assert "learning rate rises" in " ".join(result.stderr.split())


def test_the_same_steps_report_nothing(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "t2a.toml", train__steps=4)
    for _ in range(2):
        assert run_cli("train", path, cwd=tmp_path).code == 0
    assert not changes(tmp_path / "runs" / "t2a")
