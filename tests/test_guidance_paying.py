"""`schedule = "paying"`: the gain of guidance, its bound, and the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_rows, run_cli, write_recipe

from stagecli.recipe.load import load_recipe
from stagecli.stage.base import Plan, Signals
from stagecli.stage.guidance import GuidanceMechanism
from stagecli.stage.guidance_conflict import WINDOW, ConflictMeter, upper_bound
from stagecli.stage.guidance_options import GuidanceOptions

MEASUREMENTS = 50  # of a whole budget


def first_end(gains: np.ndarray) -> int | None:
    """After how many measurements the mean gain is at most 0; None where it never is."""
    for count in range(1, len(gains) + 1):
        bound = upper_bound(list(gains[max(0, count - WINDOW) : count]))
        if bound is not None and bound <= 0:
            return count
    return None


def ends(means: np.ndarray, runs: int = 100) -> list[int | None]:
    """The ends of runs whose gains are `means` plus noise of deviation 1."""
    rng = np.random.default_rng(0)
    return [first_end(means + rng.standard_normal(len(means))) for _ in range(runs)]


# -- the bound -------------------------------------------------------------------------------------


def test_the_bound_is_that_of_a_one_sided_t_test() -> None:
    from scipy import stats

    gains = np.random.default_rng(1).standard_normal(WINDOW)
    ours = upper_bound(list(gains))
    error = gains.std(ddof=1) / np.sqrt(WINDOW)
    theirs = gains.mean() + stats.t.ppf(0.95, WINDOW - 1) * error
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert upper_bound(list(gains[1:])) is None


def test_guidance_that_pays_does_not_end() -> None:
    assert sum(end is not None for end in ends(np.full(MEASUREMENTS, 1.0))) == 0
    assert sum(end is not None for end in ends(np.full(MEASUREMENTS, 0.5))) < 5


def test_guidance_that_harms_ends_at_once() -> None:
    after = ends(np.full(MEASUREMENTS, -1.0))
    assert None not in after
    assert np.median(after) <= WINDOW + 2  # type: ignore[arg-type]


def test_a_gain_that_turns_negative_ends_guidance_after_it_did() -> None:
    """From 1 to -1 over the budget: the gain is 0 at measurement 25."""
    after = [end or MEASUREMENTS for end in ends(np.linspace(1, -1, MEASUREMENTS))]
    assert np.mean([end < 25 for end in after]) < 0.05
    assert 30 < np.median(after) < 45


# -- its measurement -------------------------------------------------------------------------------


def measured(g_BN: torch.Tensor, d_BN: torch.Tensor, t_B: torch.Tensor, factor: float) -> dict:
    """The values of a meter for gradients of guidance `g_BN` and of diffusion `d_BN`."""
    meter = ConflictMeter(1)
    for rows in (slice(0, 3), slice(3, None)):  # two micro-batches
        hidden = torch.zeros_like(g_BN[rows])[:, None].requires_grad_()
        block_output = hidden * 1.0
        alias = meter.watch(block_output, t_B[rows], torch.ones_like(t_B[rows]))
        loss = (g_BN[rows, None] * alias).sum() + (d_BN[rows, None] * block_output).sum()
        (factor * loss).backward()
    meter.gather(lambda x: x)
    return meter.values


@pytest.mark.parametrize("factor", [1.0, 1024.0])
def test_the_gain_is_the_projection_on_the_diffusion_gradient(factor: float) -> None:
    """Over samples with t >= 0.5; a factor on the loss, as in fp16, cancels."""
    rng = torch.Generator().manual_seed(0)
    g_BN = torch.randn(8, 5, generator=rng)
    d_BN = torch.randn(8, 5, generator=rng)
    t_B = torch.tensor([0.1, 0.3, 0.49, 0.5, 0.6, 0.7, 0.9, 0.99])
    expected = float((g_BN[3:] * d_BN[3:]).sum() / d_BN[3:].square().sum())
    assert measured(g_BN, d_BN, t_B, factor)["gain"] == pytest.approx(expected, rel=1e-4)
    assert measured(3 * d_BN, d_BN, t_B, factor)["gain"] == pytest.approx(3.0, rel=1e-4)
    assert measured(-d_BN, d_BN, t_B, factor)["gain"] == pytest.approx(-1.0, rel=1e-4)


def test_a_gradient_that_overflowed_is_no_measurement() -> None:
    values = measured(torch.full((4, 5), torch.inf), torch.ones(4, 5), torch.full((4,), 0.7), 1.0)
    assert values == {}


# -- in a mechanism, and in training ---------------------------------------------------------------


def guided(folder: Path, **changes: Any) -> Path:
    return write_recipe(
        folder / "p.toml",
        "t2a",
        **{
            "train__samples": 0,
            "stage__guidance__schedule": "paying",
            "stage__guidance__hidden": 16,
            "stage__guidance__conflict_every": 1,
            "stage__guidance__target": "teacher",
            **changes,
        },
    )


@pytest.mark.parametrize(("gain", "end"), [(-0.1, WINDOW), (0.1, None)])
def test_the_mechanism_ends_by_the_bound(gain: float, end: int | None, tmp_path: Path) -> None:
    """Needs no regime. What was measured before a resume counts."""
    recipe = load_recipe(guided(tmp_path))
    options = GuidanceOptions(**recipe.stage["guidance"])
    guidance = GuidanceMechanism.build(options, recipe)
    guidance.attach(torch.nn.Linear(2, 2), 8)
    reasons = {}
    for step in range(1, 20):
        if step == 6:  # a resume
            state = guidance.state_dict()
            guidance = GuidanceMechanism.build(options, recipe)
            guidance.attach(torch.nn.Linear(2, 2), 8)
            guidance.load_state_dict(state)
        guidance.plan(step - 1, Plan())
        noise = 0.01 * (-1) ** step
        sums = torch.tensor([[0.0] * 5 + [gain + noise], [0.0] * 5 + [1.0]], dtype=torch.float64)
        guidance.conflict.sums_2Q = sums
        guidance.step(1e-3, lambda x: x, 1.0)
        zeros = torch.zeros(1)
        for event in guidance.observe(Signals(step, zeros, zeros, 1.0, 1e-3)):
            reasons[step] = event
    assert list(reasons) == ([] if end is None else [end])
    if end is not None:
        assert "no longer lowers the diffusion loss" in reasons[end].reason
        assert reasons[end].evidence["gain_bound"] < 0
        assert guidance.features is None
        assert guidance.heads == {}


def test_rows_hold_the_gain_and_inspect_shows_it(tmp_path: Path) -> None:
    result = run_cli("train", guided(tmp_path, train__steps=WINDOW + 3), cwd=tmp_path)
    assert result.code == 0, result.stderr
    rows = [row for row in read_rows(tmp_path / "runs" / "p") if "train/loss" in row]
    assert "stage/guidance/gain" in rows[-1]
    assert "stage/guidance/gain_bound" in rows[-1]
    assert "stage/guidance/gain_bound" not in rows[WINDOW - 2]
    report = run_cli("inspect-regime", "runs/p", cwd=tmp_path)
    assert report.code == 0, report.stderr
    assert "guidance gain" in report.stdout
