"""The training loop: it draws from no global generator, and its speed is that of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh_accelerate, read_rows, run_cli, write_recipe

from stagecli.recipe.load import load_recipe
from stagecli.terminal.views import QuietView
from stagecli.train.launch import train
from stagecli.train.log_window import LogWindow
from stagecli.train.probe import ProbeSet
from stagecli.train.scorer import PairScorer

# Every mechanism acts within a few steps; guidance ends halfway.
ALL_MECHANISMS: dict[str, Any] = {
    "model__depth": 4,
    "stage__regime__every": 2,
    "stage__regime__clips": 4,
    "stage__guidance__schedule": "stop",
    "stage__guidance__end": 0.5,
    "stage__guidance__hidden": 16,
    "stage__timesteps__bins": 2,
    "stage__timesteps__history": 2,
    "stage__structure__action": "align",
    "stage__structure__when": "always",
    "stage__structure__ramp": 0.3,
}


# -- the global generator ------------------------------------------------------------------------


class GeneratorView(QuietView):
    """Keeps the state of torch's global generator at the end of every step."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def step(self, step: int) -> None:
        self.states.append(torch.get_rng_state())


@pytest.mark.parametrize("mechanisms", [{}, ALL_MECHANISMS], ids=["plain", "all mechanisms"])
@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_a_step_leaves_the_global_generator_as_it_was(
    kind: str, mechanisms: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All randomness is a function of seed and step: a resume would not restore this generator.

    Validation, evaluation, samples and checkpoints in between are held to the same.
    """
    monkeypatch.chdir(tmp_path)
    fresh_accelerate()
    outputs = {
        "train__validate_every": 2,
        "train__evaluate_every": 3,
        "train__evaluate_clips": 5,
        "train__sample_every": 5,
    }
    path = write_recipe(tmp_path / "r.toml", kind, **outputs, **mechanisms)
    view = GeneratorView()
    assert train(load_recipe(path), tmp_path / "run", view) == "finished"
    assert len(view.states) == 10
    assert all(torch.equal(state, view.states[0]) for state in view.states)


# -- the speed -----------------------------------------------------------------------------------


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`jump(seconds)` sets the monotonic clock forward."""
    monotonic = time.monotonic
    offset = 0.0

    def forward(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + offset)
    return forward


def window_with_steps(count: int) -> LogWindow:
    window = LogWindow(bins=4)
    for _ in range(count):
        window.add(torch.tensor([0.1, 0.9]), torch.tensor([1.0, 2.0]), loss=1.5, grad_norm=0.5)
    return window


def test_the_speed_is_steps_over_time(jump: Callable[[float], None]) -> None:
    window = window_with_steps(4)
    jump(100)
    numbers = window.metrics(batch_size=8)
    assert numbers["speed/step_s"] == pytest.approx(25, rel=0.01)
    assert numbers["speed/samples_per_s"] == pytest.approx(4 * 8 / 100, rel=0.01)


def test_time_left_out_does_not_slow_the_speed(jump: Callable[[float], None]) -> None:
    window = window_with_steps(4)
    jump(1100)
    window.leave_out(1000)
    assert window.metrics(batch_size=8)["speed/step_s"] == pytest.approx(25, rel=0.01)
    with window.paused():
        jump(5000)
    assert window.metrics(batch_size=8)["speed/step_s"] == pytest.approx(25, rel=0.01)


def test_the_speed_of_a_run_leaves_out_everything_but_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: Callable[[float], None]
) -> None:
    """Validation, evaluation, probes, samples and checkpoints seem to take 1000 s each."""
    from stagecli.runs import checkpoint
    from stagecli.train import outputs

    def slow(owner: Any, name: str) -> list[str]:
        original = getattr(owner, name)
        calls: list[str] = []

        def wrapped(*args: Any, **keys: Any) -> Any:
            calls.append(name)
            jump(1000)
            return original(*args, **keys)

        monkeypatch.setattr(owner, name, wrapped)
        return calls

    calls = {
        name: slow(owner, name)
        for owner, name in (
            (outputs, "validate"),
            (outputs, "draw_samples"),
            (checkpoint, "save"),
            (PairScorer, "measure"),
            (ProbeSet, "measure"),
        )
    }
    recipe = write_recipe(
        tmp_path / "sr.toml",
        "sr",
        train__log_every=5,
        train__validate_every=3,
        train__evaluate_every=3,
        train__evaluate_clips=4,
        train__sample_every=3,
        train__checkpoint_every=3,
        stage__regime__every=2,
        stage__regime__clips=4,
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    assert all(calls.values()), "something was never called"
    speeds = [row for row in read_rows(tmp_path / "runs" / "sr") if "speed/step_s" in row]
    assert [row["step"] for row in speeds] == [5, 10]
    for row in speeds:
        assert row["speed/step_s"] < 100
        assert row["speed/samples_per_s"] > 4 / 100
