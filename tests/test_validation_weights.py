"""The validation loss is that of the averaged weights, which are sampled, not of the raw ones."""

from __future__ import annotations

from pathlib import Path

from conftest import losses_of, read_rows, run_cli, write_recipe


def test_validation_depends_on_the_average_and_training_does_not(tmp_path: Path) -> None:
    training = []
    validation = []
    for ema in (0.9, 0.2):
        recipe = write_recipe(tmp_path / f"ema{ema}.toml", train__ema=ema, train__validate_every=5)
        name = f"run{ema}"
        result = run_cli("train", recipe, "--name", name, cwd=tmp_path)
        assert result.code == 0, result.stderr
        run = tmp_path / "runs" / name
        training.append(losses_of(run))
        validation.append([row["valid/loss"] for row in read_rows(run) if "valid/loss" in row])
    assert training[0] == training[1]
    assert len(validation[0]) == len(validation[1]) >= 2
    assert validation[0][-1] != validation[1][-1]
