"""The speed in the first row after a resume is that of the steps it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import read_rows, run_cli, write_recipe

from stagecli.runs.checkpoint import load_state
from stagecli.train import log_window
from stagecli.train.log_window import LogWindow


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log_window.time, "monotonic", clock)
    return clock


def step(window: LogWindow, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    window.add(torch.full((8,), 0.5), torch.ones(8), 1.0, 1.0)


@pytest.mark.parametrize("carried", [1, 3, 9])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_resume_continues_the_clock(carried: int, after: int, clock: Clock) -> None:
    window = LogWindow(bins=4)
    for _ in range(carried):
        step(window, clock, 2.0)
    state = window.state_dict()
    clock.now = 5.0  # another process, at any time
    resumed = LogWindow(bins=4)
    resumed.load_state_dict(state)
    clock.now += 60.0  # preparation
    resumed.restart_clock()
    for _ in range(after):
        step(resumed, clock, 2.0)
    row = resumed.metrics(batch_size=8)
    assert row["speed/step_s"] == pytest.approx(2.0)
    assert row["speed/samples_per_s"] == pytest.approx(4.0)
    resumed.clear()
    step(resumed, clock, 3.0)
    assert resumed.metrics(batch_size=8)["speed/step_s"] == pytest.approx(3.0)


def test_a_checkpoint_of_an_earlier_version_counts_the_steps_since(clock: Clock) -> None:
    window = LogWindow(bins=4)
    for _ in range(3):
        step(window, clock, 2.0)
    state = window.state_dict()
    del state["elapsed"]
    resumed = LogWindow(bins=4)
    resumed.load_state_dict(state)
    resumed.restart_clock()
    assert "speed/step_s" not in resumed.metrics(batch_size=8)
    step(resumed, clock, 5.0)
    assert resumed.metrics(batch_size=8)["speed/step_s"] == pytest.approx(5.0)
    resumed.clear()
    step(resumed, clock, 3.0)
    assert resumed.metrics(batch_size=8)["speed/step_s"] == pytest.approx(3.0)


def test_a_checkpoint_within_a_log_window_holds_its_time(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "r.toml", train__steps=4, train__log_every=3, train__checkpoint_every=2
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "r"
    window = load_state(run / "checkpoints" / "step_00000002")[1]["log_window"]
    (first, _) = [row for row in read_rows(run) if "speed/step_s" in row]
    assert 0 < window["elapsed"] < 3 * first["speed/step_s"] + 0.01
    resumed = run_cli("train", recipe, "--from-checkpoint", "2", cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr
    again = [row for row in read_rows(run) if row["attempt"] == 2 and "speed/step_s" in row]
    assert again[0]["step"] == 3
    assert 3 * again[0]["speed/step_s"] > window["elapsed"]
