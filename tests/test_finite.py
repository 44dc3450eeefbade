"""A step that is not finite is noticed late where its numbers stay on the device, at no loss.

Fused optimisers and averages on a CPU take the same number that skips a step as those on a GPU, so
that the late reading is tested here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses_of, read_rows, run_cli, sha, write_recipe

from stagecli.model.ema import EMA
from stagecli.runs.checkpoint import load_state, load_weights
from stagecli.train import finite, trainer

LATE: dict[str, Any] = {"train__log_every": 5, "train__checkpoint_every": 10}
MECHANISMS: dict[str, Any] = {
    "model__depth": 6,
    "train__validate_every": 10,
    "stage__regime__every": 5,
    "stage__regime__clips": 4,
    "stage__guidance__schedule": "constant",
    "stage__guidance__hidden": 16,
    "stage__timesteps__kind": "progress",
    "stage__structure__action": "align",
    "stage__structure__when": "always",
    "stage__structure__groups": "thirds",
}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are read once per interval, as on a GPU."""
    monkeypatch.setattr(finite, "reads_each_step", lambda *_: False)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """`failing(step, "loss" or "gradient")` makes one step not finite."""
    flow_loss = trainer.flow_loss

    def fail_at(step: int, quantity: str) -> None:
        calls = 0

        def wrapped(*args: Any, **keys: Any) -> Any:
            nonlocal calls
            calls += 1
            result = flow_loss(*args, **keys)
            if calls == step:
                zero = (result.velocity_BTC - result.velocity_BTC.detach()).square().sum()
                spoilt = result.loss_B * math.nan if quantity == "loss" else zero.sqrt()
                result.loss_B = result.loss_B + spoilt
            return result

        monkeypatch.setattr(trainer, "flow_loss", wrapped)

    yield fail_at
    monkeypatch.setattr(trainer, "flow_loss", flow_loss)


@pytest.mark.parametrize("mechanisms", [{}, MECHANISMS], ids=["plain", "mechanisms"])
def test_reading_late_changes_nothing(
    mechanisms: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows and weights; the average differs by its rounding."""
    recipe = write_recipe(tmp_path / "r.toml", **LATE, **mechanisms)
    assert run_cli("train", recipe, "--name", "each", cwd=tmp_path).code == 0
    monkeypatch.setattr(finite, "reads_each_step", lambda *_: False)
    assert run_cli("train", recipe, "--name", "late", cwd=tmp_path).code == 0
    runs = [tmp_path / "runs" / name for name in ("each", "late")]
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=1e-6)
    bins = [read_rows(run, "bins") for run in runs]
    assert [row["count"] for row in bins[0]] == [row["count"] for row in bins[1]]
    folders = [run / "checkpoints" / "step_00000010" for run in runs]
    if not mechanisms:  # with them, the density follows the probes' average, and its rounding
        assert losses_of(runs[0]) == losses_of(runs[1])
        assert sha(folders[0] / "model.safetensors") == sha(folders[1] / "model.safetensors")
    ema = [load_weights(folder, "ema") for folder in folders]
    for name, value in ema[0].items():
        # With mechanisms the rounding has moved the density, and with it all that followed.
        torch.testing.assert_close(
            ema[1][name], value, rtol=1e-5, atol=1e-6 if mechanisms else 1e-7
        )


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
@pytest.mark.parametrize("mechanisms", [{}, MECHANISMS], ids=["plain", "mechanisms"])
def test_a_step_that_is_noticed_late_is_undone(
    quantity: str,
    mechanisms: dict[str, Any],
    tmp_path: Path,
    late: None,
    failing: Callable[[int, str], None],
) -> None:
    """Step 7 fails and is noticed after step 10: step 6 is saved, to the bit, and resumes."""
    recipe = write_recipe(tmp_path / "r.toml", **LATE, **mechanisms)
    six = write_recipe(
        tmp_path / "six.toml", **{**LATE, "train__checkpoint_every": 6}, **mechanisms
    )
    assert run_cli("train", six, "--name", "whole", cwd=tmp_path).code == 0
    failing(7, quantity)
    result = run_cli("train", recipe, "--name", "broken", cwd=tmp_path)
    assert result.code == 1
    assert f"the {quantity} is not finite at step 7" in result.stderr
    assert "saved" in result.stderr and "step 6" in result.stderr

    # The state after step 6, but for the seconds.
    whole = tmp_path / "runs" / "whole" / "checkpoints" / "step_00000006"
    broken = tmp_path / "runs" / "broken" / "checkpoints" / "step_00000006"
    for name in ("model", "ema", "trainer"):
        assert sha(whole / f"{name}.safetensors") == sha(broken / f"{name}.safetensors"), name
    states = [load_state(folder)[1]["stages"] for folder in (whole, broken)]
    assert str(states[0]) == str(states[1])


def test_it_resumes_after_a_late_failure(
    tmp_path: Path, late: None, failing: Callable[[int, str], None]
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", **LATE)
    assert run_cli("train", recipe, "--name", "whole", cwd=tmp_path).code == 0
    failing(7, "loss")
    assert run_cli("train", recipe, "--name", "broken", cwd=tmp_path).code == 1
    failing(0, "loss")
    assert run_cli("train", recipe, "--name", "broken", cwd=tmp_path).code == 0
    assert losses_of(tmp_path / "runs" / "broken") == losses_of(tmp_path / "runs" / "whole")


def test_another_error_after_it_does_not_hide_it(
    tmp_path: Path,
    late: None,
    failing: Callable[[int, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Step 7 is not finite, and step 9 has no data: the error is that of step 7."""
    recipe = write_recipe(tmp_path / "r.toml", **LATE)
    failing(7, "loss")
    take = trainer.Feed.take

    def lost(self: trainer.Feed, *args: Any) -> Any:
        if self.state.step == 8:
            raise RuntimeError("no data")
        return take(self, *args)

    monkeypatch.setattr(trainer.Feed, "take", lost)
    result = run_cli("train", recipe, cwd=tmp_path)
    assert "the loss is not finite at step 7" in result.stderr
    assert (tmp_path / "runs" / "r" / "checkpoints" / "step_00000006").exists()


def test_the_average_skips_a_step_by_a_number_on_the_device() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(7, 5)
    plain = EMA(network, 0.9)
    skipping = EMA(network, 0.9)
    skip = torch.zeros(())
    for _ in range(3):
        torch.nn.init.normal_(network.weight)
        plain.update(network)
        skipping.update(network, skip)
        torch.testing.assert_close(skipping.weights, plain.weights)
    own = network.weight.clone()
    before = {name: value.clone() for name, value in skipping.weights.items()}
    skip.fill_(1)
    skipping.update(network, skip)
    assert all(torch.equal(before[name], value) for name, value in skipping.weights.items())
    assert torch.equal(network.weight, own)


def test_a_mechanism_that_follows_the_loss_reads_every_step() -> None:
    """So does fp16, whose scaler would move; on a CPU reading waits for nothing."""
    from stagecli.recipe.load import load_recipe
    from stagecli.stage.controller import Stages

    cuda = torch.device("cuda")
    for settings, expected in (
        ([], False),
        (["train.precision=fp16"], True),
        (["stage.timesteps.kind=infonoise"], True),
        (["stage.timesteps.kind=curriculum"], False),
    ):
        recipe = load_recipe("quickstart", settings)
        stages = Stages.of(recipe)
        assert finite.reads_each_step(recipe, stages, cuda) is expected, settings
        assert finite.reads_each_step(recipe, stages, torch.device("cpu"))
