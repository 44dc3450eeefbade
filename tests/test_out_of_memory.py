"""Memory that runs out in training: one error with what was asked for and what would fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, losses_of, write_recipe

from stagecli.recipe.load import load_recipe
from stagecli.train import memory, out_of_memory, trainer

Cli = Callable[..., Result]
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError("Unable to allocate 2 GiB"),
)


def fail_at(call: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a forward pass of training fail."""
    original = trainer.flow_loss
    calls = 0

    def failing(*args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*args, **keys)

    monkeypatch.setattr(trainer, "flow_loss", failing)


@pytest.mark.parametrize("error", ERRORS)
def test_it_names_the_setting_that_fits_and_resumes_with_it(
    error: Exception, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", train__batch_size=8, train__checkpoint_every=100)
    with monkeypatch.context() as patch:
        fail_at(7, error, patch)
        result = cli("train", recipe)
    assert result.code == 1 and result.stderr.count("error: ") == 1
    assert "there is not enough memory for 8 clips at once" in result.stderr
    assert "8 = 8 clips x train.accumulate 1 x 1 process" in result.stderr
    assert "measured" in result.stderr and str(error)[:20] in result.stderr
    assert "--set train.accumulate=2" in result.stderr and "Traceback" not in result.stderr
    latest = tmp_path / "runs/r/checkpoints/latest"
    assert latest.read_text().strip() == "step_00000006"

    assert cli("train", recipe, "--set", "train.accumulate=2").code == 0
    assert cli("train", recipe, "--name", "whole").code == 0
    assert losses_of(tmp_path / "runs/r") == pytest.approx(
        losses_of(tmp_path / "runs/whole"), rel=1e-4
    )


def test_the_setting_that_fits_is_the_nearest(tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path / "r.toml", train__batch_size=24)))
    estimate = memory.MemoryEstimate(fixed=1000, gradients=0, copies=0, per_clip=100)
    hint = out_of_memory.nearest_setting(recipe, estimate, 2, 1400)
    assert "train.accumulate=3:" in hint and "in steps of 4 clips" in hint
    hint = out_of_memory.nearest_setting(recipe, estimate, 2, 1050)
    assert "train.activation_checkpointing=true" in hint


def test_a_dry_run_tells_memory_largest_batch_and_hours(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", train__accumulate=2)
    plan = cli("train", recipe, "--dry-run").stdout
    assert "2 clips at once" in plan and "a step" in plan
    rows = {line.split("  ")[0]: line for line in plan.splitlines()}
    most = int(rows["largest batch"].split()[2].replace(",", ""))
    assert most > 1000 and most % 2 == 0
    monkeypatch.setattr("stagecli.train.preflight.bytes_of", lambda device: 2**20)
    plan = cli("train", recipe, "--dry-run").stdout
    assert "none: one clip takes" in plan and "not measured: this batch does not fit" in plan
