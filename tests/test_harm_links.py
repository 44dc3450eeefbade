"""Checkpoints stay inside their run: nothing is read or deleted through `latest` or a link."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, tree

from stagecli.errors import StageError
from stagecli.runs import checkpoint

Cli = Callable[..., Result]


@pytest.fixture
def elsewhere(runs: Path, tmp_path: Path) -> Path:
    """A checkpoint of another step, outside the run."""
    newest = checkpoint.resolve(runs / "t2a" / "checkpoints")
    folder = tmp_path / "elsewhere" / "step_00000001"
    shutil.copytree(newest, folder)
    return folder


@pytest.mark.parametrize(
    "name", ["../../../elsewhere/step_00000001", "/", "..", ".", "\0", "x" * 999]
)
def test_latest_cannot_point_out_of_the_run(name: str, runs: Path, elsewhere: Path) -> None:
    folder = runs / "t2a" / "checkpoints"
    assert elsewhere.is_dir()
    expected = checkpoint.resolve(folder)
    (folder / "latest").write_text(name + "\n")
    assert checkpoint.resolve(folder) == expected


def test_a_link_is_no_checkpoint_and_is_not_rotated_away(runs: Path, elsewhere: Path) -> None:
    folder = runs / "t2a" / "checkpoints"
    before = tree(elsewhere)
    (folder / elsewhere.name).symlink_to(elsewhere)
    assert 1 not in checkpoint.steps(folder)
    with pytest.raises(StageError, match="no checkpoint '1'"):
        checkpoint.resolve(folder, "1")
    checkpoint.rotate(folder, 1, None)
    assert tree(elsewhere) == before


def test_rotation_deletes_links_inside_a_checkpoint_but_not_their_targets(
    runs: Path, elsewhere: Path
) -> None:
    folder = runs / "t2a" / "checkpoints"
    before = tree(elsewhere)
    oldest = folder / checkpoint.name_of(checkpoint.steps(folder)[0])
    (oldest / "more").symlink_to(elsewhere)
    checkpoint.rotate(folder, 1, None)
    assert not oldest.exists()
    assert tree(elsewhere) == before


def test_a_folder_of_checkpoints_elsewhere_is_refused(
    runs: Path, elsewhere: Path, cli: Cli
) -> None:
    folder = runs / "t2a" / "checkpoints"
    shutil.rmtree(folder)
    folder.symlink_to(elsewhere.parent)
    before = tree(elsewhere)
    for command in (("sample", "runs/t2a", "-p", "hi"), ("train", "t2a.toml")):
        if command[0] == "train":
            shutil.copy(runs / "t2a" / "recipe.toml", runs.parent / "t2a.toml")
        result = cli(*command)
        assert result.code != 0
        assert "leads out of the run" in result.stderr
    assert tree(elsewhere) == before
