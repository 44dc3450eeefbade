"""`[stage.timesteps]`: densities against closed forms, weights, and training that resumes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    Result,
    die_at,
    losses_of,
    read_rows,
    run_cli,
    sha,
    two_processes,
    write_recipe,
)
from helpers.resume import attempts, facts, killed, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit

from stagecli.data.examples import stratified
from stagecli.errors import StageError
from stagecli.flow.objective import Result as Objective
from stagecli.recipe.load import load_from_run, load_recipe
from stagecli.schema import Recipe
from stagecli.stage import loss_weights
from stagecli.stage.base import NoiseLevel, Plan, Probe, Signals
from stagecli.stage.controller import Stages
from stagecli.stage.densities import (
    LogitLogistic,
    LogitNormal,
    PiecewiseLinear,
    TimeDensity,
    Uniform,
    log_snr_normal,
)
from stagecli.stage.densities_composed import Binned, Floored, Weighted
from stagecli.stage.densities_measured import by_discrepancy, by_loss, by_progress
from stagecli.stage.loss_weights import ChangeAware, LossWeight, MinSNR, effective_share
from stagecli.stage.quadrature import integral
from stagecli.stage.timesteps import TimestepsMechanism
from stagecli.stage.timesteps_options import TimestepsOptions
from stagecli.train.trainer import total_loss

STAGE: dict[str, Any] = {
    "stage__regime__every": 1,
    "stage__regime__clips": 4,
}
SMALL = {"stage__timesteps__bins": 2, "stage__timesteps__history": 2}
KINDS = [
    "progress",
    "discrepancy",
    "infonoise",
    "uniform",
    "logit-normal",
    "truncated-logit-normal",
    "log-snr-normal",
    "shift",
    "speed",
    "curriculum",
    "loss-second-moment",
]
EDGES = (0.0, 0.2, 0.5, 0.7, 1.0)
EARLY = LogitLogistic(0.4, 0.56)
NODES = (0.0, 0.15, 0.55, 0.9, 1.0)
HEIGHTS = (0.15, 0.4, 1.2, 2.0, 2.0)
LEVELS = tuple(
    NoiseLevel(t=t, Dn=Dn, made=made, to_come=to_come, scope=made + to_come)
    for t, Dn, made, to_come in (
        (0.15, 0.05, 0.01, 0.01),
        (0.55, 0.3, 0.2, 0.1),
        (0.9, 0.7, 0.2, 0.4),
    )
)


def truncated(t: np.ndarray) -> np.ndarray:
    return stats.norm.cdf(logit(0.925 * t)) / stats.norm.cdf(logit(0.925))


def binned(t: np.ndarray) -> np.ndarray:
    inner = np.array([0.2, 0.3, 0.2, 0.3])
    factors = np.array([1.0, 4.0, 0.5, 2.0])
    return np.interp(
        t, EDGES, np.concatenate([[0], np.cumsum(inner * factors)]) / (inner * factors).sum()
    )


def piecewise(t: np.ndarray) -> np.ndarray:
    grid = np.unique(np.concatenate([np.linspace(0, 1, 20001), NODES]))
    heights = np.interp(grid, NODES, HEIGHTS)
    below = np.concatenate([[0], np.cumsum((heights[1:] + heights[:-1]) / 2 * np.diff(grid))])
    k = np.searchsorted(grid, t, side="right") - 1
    inside = (heights[k] + np.interp(t, NODES, HEIGHTS)) / 2 * (t - grid[k])
    return (below[k] + inside) / below[-1]


# Each density with its CDF written a second time, from other functions.
CASES: dict[str, tuple[TimeDensity, Callable[[np.ndarray], np.ndarray]]] = {
    "uniform": (Uniform(), lambda t: t),
    "LL at r = 0": (EARLY, lambda t: stats.logistic.cdf((logit(t) - 0.4) / 0.56)),
    "LL wide": (LogitLogistic(-0.3, 1.4), lambda t: stats.logistic.cdf((logit(t) + 0.3) / 1.4)),
    "LL, floored": (
        Floored(EARLY, 0.05),
        lambda t: 0.95 * stats.logistic.cdf((logit(t) - 0.4) / 0.56) + 0.05 * t,
    ),
    "floored, narrow": (
        Floored(LogitLogistic(3.0, 0.1), 0.05),
        lambda t: 0.95 * stats.logistic.cdf((logit(t) - 3) / 0.1) + 0.05 * t,
    ),
    "logit-normal": (LogitNormal(0.3, 0.8), lambda t: stats.norm.cdf(logit(t), 0.3, 0.8)),
    "truncated": (LogitNormal(0.0, 1.0, 0.0, 0.925), truncated),
    "log-SNR normal": (
        log_snr_normal(-2.4, 4.0),
        lambda t: stats.norm.sf(2 * (np.log1p(-t) - np.log(t)), -2.4, 4.0),
    ),
    "shift": (LogitLogistic(math.log(3), 1.0), lambda t: t / (t + 3 * (1 - t))),
    "speed": (
        Binned(Uniform(), (0.0, 0.9, 1.0), (3.0, 1.0)),
        lambda t: np.interp(t, [0, 0.9, 1], [0, 27 / 28, 1]),
    ),
    "curriculum, half way": (
        Floored(LogitNormal(), 0.5),
        lambda t: 0.5 * stats.norm.cdf(logit(t)) + 0.5 * t,
    ),
    "piecewise linear": (PiecewiseLinear(NODES, HEIGHTS), piecewise),
    "triangle": (PiecewiseLinear((0.0, 1.0), (0.0, 1.0)), lambda t: t**2),
    "binned": (Binned(Uniform(), EDGES, (1.0, 4.0, 0.5, 2.0)), binned),
    "weighted": (
        Weighted(Floored(EARLY, 0.05), LogitNormal(), 0.5),
        lambda t: 0.95 * stats.logistic.cdf((logit(t) - 0.4) / 0.56) + 0.05 * t,
    ),
}
OTHERS: dict[str, Any] = {
    "binned LL": Binned(EARLY, EDGES, (1.0, 4.0, 0.5, 2.0)),
    "binned LL, floored": Floored(Binned(EARLY, EDGES, (1.0, 4.0, 0.5, 2.0)), 0.05),
    "by squared loss": Weighted(Binned(Uniform(), EDGES, (1.0, 4.0, 0.5, 2.0)), Uniform()),
}
OTHERS |= {
    "by progress": by_progress(LEVELS, 0.5, 0.15),
    "by progress, without a floor": by_progress(LEVELS, 0.5, 0.0),
    "by discrepancy": by_discrepancy(LEVELS, 2.0, 0.15),
    "by loss": by_loss((0.1, 0.5, 0.9), (1.0, 0.5, 2.0), 0.15),
    "by progress, weighted": Weighted(by_progress(LEVELS, 0.5, 0.15), LogitNormal(), 0.5),
}
ALL = {name: density for name, (density, _) in CASES.items()} | OTHERS


def iid(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(n).astype(np.float32))


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- the densities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_closed_form(name: str) -> None:
    density, cdf = CASES[name]
    t = density.sample(iid(4000))[0].double().numpy()
    assert stats.kstest(t, cdf).pvalue > 0.01
    grid = np.linspace(0.001, 0.999, 999)
    assert density.cdf(torch.from_numpy(grid)).numpy() == pytest.approx(cdf(grid), abs=1e-12)


def test_the_test_of_samples_can_fail() -> None:
    t = LogitNormal(0.3, 0.8).sample(iid(4000))[0].double().numpy()
    assert stats.kstest(t, lambda t: stats.norm.cdf(logit(t), 0.3, 0.9)).pvalue < 0.01


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize("name", CASES)
def test_a_stratified_batch_stays_stratified(name: str, n: int) -> None:
    density, cdf = CASES[name]
    for step in range(5):
        t = np.sort(density.sample(stratified(3, step, n))[0].double().numpy())
        below = cdf(t)
        distance = max(
            np.abs(below - np.arange(n) / n).max(), np.abs(below - np.arange(1, n + 1) / n).max()
        )
        assert distance <= 1 / n + 1e-6
        strata = np.clip(np.floor(below * n + 1e-4 * (np.arange(n) - below * n)), 0, n - 1)
        assert np.abs(strata - np.arange(n)).max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_pdf_is_the_slope_of_the_cdf_and_its_integral_is_1(name: str) -> None:
    density = ALL[name]
    assert integral(density.pdf, density.breaks) == pytest.approx(1, abs=1e-9)
    t = double(0.03, 0.11, 0.31, 0.55, 0.83, 0.97)
    h = 1e-6
    slope = (density.cdf(t + h) - density.cdf(t - h)) / (2 * h)
    assert torch.allclose(density.pdf(t), slope, rtol=1e-6)
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float((density.cdf(density.quantile(u)) - u).abs().max()) < 1e-12


@settings(deadline=None, max_examples=40)
@given(
    u=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=32),
    name=st.sampled_from(sorted(ALL)),
)
def test_t_rises_with_u_and_stays_inside(u: list[float], name: str) -> None:
    t_B, w_B = ALL[name].sample(torch.tensor(sorted(u)))
    assert t_B.dtype == w_B.dtype == torch.float32
    assert bool((t_B.diff() >= 0).all())
    assert bool(((t_B > 0) & (t_B < 1)).all())
    assert bool((torch.isfinite(w_B) & (w_B > 0)).all())


@settings(deadline=None, max_examples=40)
@given(
    m=st.floats(-4, 4),
    s=st.floats(0.1, 2),
    share=st.floats(1e-3, 0.999),
    u=st.floats(1e-5, 1 - 1e-5),
    v=st.floats(1e-5, 1 - 1e-5),
)
def test_the_mixture_is_inverted_for_any_parameters(
    m: float, s: float, share: float, u: float, v: float
) -> None:
    density = Floored(LogitLogistic(m, s), share)
    t = density.quantile(double(*sorted((u, v))))
    assert density.cdf(t).tolist() == pytest.approx(sorted((u, v)), abs=1e-9)
    assert t[0] <= t[1]


@pytest.mark.parametrize("name", ALL)
def test_extreme_u(name: str) -> None:
    u = torch.tensor([0.0, 1e-45, 1e-20, 1e-7, 0.5, 1 - 2**-24, 1.0])
    t_B, w_B = ALL[name].sample(u)
    assert bool(((t_B > 0) & (t_B < 1) & torch.isfinite(w_B)).all())


@pytest.mark.parametrize("name", ALL)
def test_each_sample_has_its_own_t_whatever_the_batch(name: str) -> None:
    """Two processes rely on this to train the same t as one."""
    u = stratified(0, 0, 32)
    whole = ALL[name].sample(u)
    parts = [ALL[name].sample(u[i : i + 8]) for i in range(0, 32, 8)]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


def test_uniform_is_u_to_the_bit() -> None:
    for density in (Uniform(), by_progress(LEVELS, 0.5, 1.0), by_loss((0.5,), (1.0,), 1.0)):
        assert density is not None
        u = stratified(1, 2, 64)
        t_B, w_B = density.sample(u)
        assert torch.equal(t_B, u)
        assert torch.equal(w_B, torch.ones(64))
    wide = LogitLogistic(0.0, 1.0).sample(stratified(1, 2, 64))[0]
    assert torch.allclose(wide, stratified(1, 2, 64), atol=1e-7)


def test_the_shift_of_sd3_is_logit_logistic() -> None:
    u = torch.rand(1000, dtype=torch.float64)
    for a in (0.3, 1.5, 3.0):
        assert torch.allclose(
            LogitLogistic(math.log(a), 1.0).quantile(u), a * u / (1 + (a - 1) * u), atol=1e-12
        )


def test_a_logit_logistic_density_is_near_logit_normal() -> None:
    """The total variation distance is 0.033 at s = 0.61."""

    def distance(s: float) -> float:
        return 0.5 * integral(lambda t: (LogitLogistic(0.0, s).pdf(t) - LogitNormal().pdf(t)).abs())

    assert distance(0.61) == pytest.approx(0.0334, abs=2e-4)
    assert distance(0.61) < min(distance(0.56), distance(0.7))


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 1, 1), (1, 4), ()])
def test_other_shapes_than_B_are_refused(shape: tuple[int, ...]) -> None:
    u = torch.full(shape, 0.5)
    for call in (EARLY.sample, Uniform().sample, LossWeight((MinSNR(),), Uniform())):
        with pytest.raises(ValueError, match=r"must have shape \[B\]"):
            call(u)


# -- weights ---------------------------------------------------------------------------------------

FUNCTIONS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda t: t,
    lambda t: (1 - t) ** 4,
    lambda t: torch.exp(-40 * (t - 0.97) ** 2),
    lambda t: 1 / (0.02 + t),
]


@pytest.mark.parametrize("reference", [Uniform(), LogitNormal(0.2, 0.9)])
@pytest.mark.parametrize("base", [EARLY, Binned(EARLY, EDGES, (1.0, 2.0, 0.5, 1.5))])
@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_importance_weights_have_mean_1(
    reference: TimeDensity, base: TimeDensity, kappa: float
) -> None:
    density = Weighted(Floored(base, 0.05), reference, kappa)
    mean = integral(lambda t: density.pdf(t) * density.weight(t), density.breaks)
    assert mean == pytest.approx(1, abs=1e-8)
    w_B = density.sample(stratified(0, 0, 20000))[1]
    assert float(w_B.mean()) == pytest.approx(1, abs=2e-3)
    w_B = density.sample(iid(20000))[1]
    assert float(w_B.mean()) == pytest.approx(1, abs=4 * float(w_B.std()) / math.sqrt(20000))


@pytest.mark.parametrize("reference", [Uniform(), LogitNormal(0.2, 0.9)])
def test_kappa_1_keeps_the_expected_loss_and_kappa_0_does_not(reference: TimeDensity) -> None:
    density = Weighted(Floored(EARLY, 0.05), reference, 1.0)
    for f in FUNCTIONS:
        plain = integral(lambda t, f=f: reference.pdf(t) * f(t))
        kept = integral(lambda t, f=f: density.pdf(t) * density.weight(t) * f(t))
        assert kept == pytest.approx(plain, rel=1e-8)
        t_B, w_B = density.sample(stratified(0, 0, 20000))
        assert float((w_B * f(t_B)).mean()) == pytest.approx(plain, rel=0.01)
    moved = integral(lambda t: density.pdf(t) * t)
    assert abs(moved - integral(lambda t: reference.pdf(t) * t)) > 0.02


def test_the_floor_bounds_the_weights() -> None:
    t = torch.sigmoid(torch.linspace(-25, 25, 2001, dtype=torch.float64))
    assert float(Weighted(Floored(EARLY, 0.05), Uniform()).weight(t).max()) <= 20
    assert float(Weighted(EARLY, Uniform()).weight(t).max()) > 1e6


def test_effective_share() -> None:
    assert effective_share(Floored(EARLY, 0.05)) == 1
    density = Weighted(Floored(EARLY, 0.05), Uniform())
    assert effective_share(density) == pytest.approx(0.475, abs=1e-3)
    w = density.sample(stratified(0, 0, 50000))[1].double()
    assert float(w.mean() ** 2 / w.square().mean()) == pytest.approx(
        effective_share(density), rel=1e-2
    )


def test_min_snr_is_the_weight_on_x0_in_terms_of_velocity() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    snr = ((1 - t) / t) ** 2
    assert torch.allclose(MinSNR(5.0)(t), snr.clamp(max=5) * t**2)
    preserving = snr.clamp(max=5) / (
        snr + 1
    )  # the form for the velocity of a variance-preserving path
    assert torch.allclose(MinSNR(5.0)(t), preserving * ((1 - t) ** 2 + t**2))
    (peak,) = MinSNR(5.0).breaks
    assert float(((1 - peak) / peak) ** 2) == pytest.approx(5)
    for density in (
        Uniform(),
        Floored(EARLY, 0.05),
        Weighted(Floored(EARLY, 0.05), Uniform(), 0.5),
    ):
        weight = LossWeight((MinSNR(5.0),), density)
        t_B, w_B = density.sample(stratified(0, 0, 20000))
        assert float((w_B * weight(t_B)).mean()) == pytest.approx(1, abs=2e-3)


def test_speed_weights() -> None:
    weight = ChangeAware(0.923, 0.6)
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    below = weight(t[t < 0.923])
    assert float(below.min()) == pytest.approx(0.4, abs=1e-3)
    assert float(below.max()) == pytest.approx(0.6)
    assert float(t[below.argmax()]) == pytest.approx(0.5)
    assert torch.equal(
        weight(t[t >= 0.923]), torch.ones(int((t >= 0.923).sum()), dtype=torch.float64)
    )
    h = 1e-6

    def share(x: torch.Tensor) -> torch.Tensor:
        return x**2 / ((1 - x) ** 2 + x**2)

    rate = (share(t + h) - share(t - h)) / (2 * h)
    assert torch.allclose(weight(t)[t < 0.923], (0.4 + 0.2 * rate / 2)[t < 0.923], atol=1e-7)
    assert torch.allclose(ChangeAware(0.9, 0.5)(t[t < 0.9]), torch.tensor(0.5, dtype=torch.float64))
    # The noise level at which the linear schedule of DDPM stands at step 700 of 1000.
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[700]
    assert 1 / (1 + math.sqrt(alphas / (1 - alphas))) == pytest.approx(0.923, abs=5e-4)


def test_trainer_multiplies_weights_per_sample() -> None:
    """`total_loss` on plans of this mechanism: weights [B]; t of another shape is refused."""
    fake: Any = SimpleNamespace(loss=lambda plan, result: None)
    mechanism = build(kind="speed", weighting="min-snr")
    plan = mechanism.plan(0, Plan())
    t_B, w_B = plan.density.sample(stratified(0, 0, 4))
    loss_B = torch.tensor([1.0, 2.0, 3.0, 4.0])
    empty = torch.zeros(4, 1, 1)
    assert plan.loss_weight is not None
    total = total_loss(fake, plan, Objective(loss_B, empty, empty, t_B), w_B)
    assert float(total) == pytest.approx(float((w_B * plan.loss_weight(t_B) * loss_B).sum()) / 4)
    with pytest.raises(ValueError, match=r"must have shape \[B\]"):
        total_loss(fake, plan, Objective(loss_B, empty, empty, t_B[:, None, None, None]), w_B)


def test_trainer_refuses_weights_that_would_broadcast() -> None:
    fake: Any = SimpleNamespace(loss=lambda plan, result: None)
    loss_B = torch.tensor([1.0, 2.0])
    empty = torch.zeros(2, 1, 1)
    with pytest.raises(ValueError, match="shape"):
        total_loss(fake, Plan(), Objective(loss_B, empty, empty, loss_B), torch.ones(2, 1, 1, 1))


# -- the mechanism ---------------------------------------------------------------------------------


def build(
    steps: int = 100, objective: dict[str, Any] | None = None, **options: Any
) -> TimestepsMechanism:
    recipe = Recipe.model_validate(
        {
            "task": {"kind": "t2a"},
            "data": {"sample_rate": 8000, "seconds": 0.4},
            "codec": {"kind": "mel"},
            "train": {"steps": steps},
            "objective": objective or {},
            "stage": {"regime": {}},
        }
    )
    return TimestepsMechanism.build(TimestepsOptions(**options), recipe)


def at(r: float = 0.0, levels: tuple[NoiseLevel, ...] = LEVELS) -> Plan:
    """The plan that a regime hands on."""
    return Plan(r=1.0, r_now=r, levels=levels)


def feed(
    mechanism: TimestepsMechanism,
    loss: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    first: int = 0,
) -> None:
    for step in range(first, first + steps):
        t_B = mechanism.plan(step, at(0.2)).density.sample(stratified(0, step, 16))[0]
        mechanism.observe(Signals(step + 1, t_B, loss(t_B), 1.0, 1e-3))


def peak(t: torch.Tensor) -> torch.Tensor:
    return 0.1 + 5 * torch.exp(-((t - 0.9) ** 2) / 0.005)


def test_progress_by_hand() -> None:
    """Scopes 0.02, 0.3, 0.6: area 0.0015 + 0.064 + 0.1575 + 0.06, 15 % uniform beside it."""
    density = build(floor=0.15, missing=0.0).density(0, at())
    area = 0.15 * 0.01 + 0.4 * 0.16 + 0.35 * 0.45 + 0.1 * 0.6
    heights = [0.85 * value / area + 0.15 for value in (0.0, 0.02, 0.3, 0.6, 0.6)]
    assert density.pdf(double(0.0, 0.15, 0.55, 0.9, 0.999)).tolist() == pytest.approx(heights)
    middle = 0.85 * (0.3 + 0.6) / 2 / area + 0.15
    assert density.pdf(double(0.725)).tolist() == pytest.approx([middle])


def test_the_floor_grows_with_the_present_r_where_asked() -> None:
    mechanism = build(floor=0.15, floor_r=0.35)
    for r, floor in ((0.0, 0.15), (0.4, 0.29), (1.0, 0.5)):
        assert float(mechanism.density(0, at(r)).pdf(double(0.0))) == pytest.approx(floor)
    assert build(floor_r=1.0).density(0, at(1.0)) == Uniform()
    assert build().density(0, at(0.0)) == build().density(9, at(1.0))


def test_discrepancy_by_hand() -> None:
    """t (1 - t) Dn^2 at t = 0.25, 0.55, 0.95, with Dn linear between the levels."""
    density = build(kind="discrepancy", floor=0.0, power=2.0, power_r=1.0).density(0, at(0.0))
    grid = np.linspace(0, 1, 20001)
    Dn = np.interp(grid, (0.15, 0.55, 0.9), (0.05, 0.3, 0.7))
    wanted = grid * (1 - grid) * Dn**2
    wanted /= np.trapezoid(wanted, grid)
    for t in (0.25, 0.55, 0.95):
        expected = float(np.interp(t, grid, wanted))
        assert float(density.pdf(double(t))) == pytest.approx(expected, rel=0.02, abs=0.01)
    later = build(kind="discrepancy", power=2.0, power_r=1.0).density(0, at(1.0))
    assert later == build(kind="discrepancy", power=1.0).density(0, at(0.3))


def test_infonoise_finds_a_peak_of_the_loss_above_its_floor() -> None:
    mechanism = build(kind="infonoise", bins=8, floor=0.15)
    assert mechanism.density(0, Plan()) == Uniform()
    feed(mechanism, lambda t: torch.where(t > 0.75, 4.0, 1.0), 300)
    density = mechanism.density(300, Plan())
    assert float(density.pdf(double(0.8125)) / density.pdf(double(0.1875))) > 3
    assert float(density.pdf(double(0.0))) == pytest.approx(0.15)
    even = build(kind="infonoise", bins=8, floor=0.0)
    feed(even, torch.ones_like, 300)
    assert even.density(300, Plan()).pdf(double(0.5, 0.25)).tolist() == pytest.approx(
        [1.5, 1.125], rel=1e-3
    )


@pytest.mark.parametrize("kind", ["progress", "discrepancy"])
def test_before_the_first_probe_t_is_drawn_as_in_the_objective(kind: str) -> None:
    normal = {"density": "logit-normal", "mean": 0.3, "std": 0.8, "floor": 0.05}
    mechanism = build(objective=normal, kind=kind)
    expected = Floored(LogitNormal(0.3, 0.8), 0.05)
    assert mechanism.density(0, Plan(r=0.5)) == expected
    nothing = tuple(
        NoiseLevel(t=level.t, Dn=0.0, made=0.0, to_come=0.0, scope=0.001) for level in LEVELS
    )
    assert mechanism.density(0, at(levels=nothing)) == expected
    assert mechanism.density(0, at()) != expected


def test_half_of_t_is_by_what_is_missing_and_all_of_it_until_progress_is_measured() -> None:
    """Dn 0.05, 0.3, 0.7, squared: 0 at t = 0, linear between the levels, constant from 0.9 on."""
    grid = (0.0, 0.15, 0.55, 0.9, 1.0)
    squares = np.array([0.0, 0.0025, 0.09, 0.49, 0.49])
    lacks = squares / np.trapezoid(squares, grid)
    early = at(levels=tuple(NoiseLevel.unmeasured(level.t, level.Dn) for level in LEVELS))
    t = double(0.15, 0.55, 0.9)
    assert build(floor=0.0).density(0, early).pdf(t).tolist() == pytest.approx(lacks[1:4].tolist())
    scopes = build(floor=0.0, missing=0.0).density(0, at()).pdf(t).numpy()
    expected = 0.2 + 0.8 * (0.7 * scopes + 0.3 * lacks[1:4])
    mixed = build(floor=0.2, missing=0.3).density(0, at())
    assert mixed.pdf(t).tolist() == pytest.approx(expected.tolist())
    nothing = tuple(replace(level, Dn=0.0) for level in LEVELS)
    expected = build(missing=0.0).density(0, at())
    assert build().density(0, at(levels=nothing)) == expected
    mechanism = build()
    assert (mechanism.follows(Plan()), mechanism.follows(early)) == ("objective", "discrepancy")
    assert mechanism.follows(at()) == "progress"


def test_an_event_says_when_t_begins_to_follow_the_regime_and_when_it_stops() -> None:
    mechanism = build()
    nothing = tuple(
        NoiseLevel(t=level.t, Dn=0.0, made=0.0, to_come=0.0, scope=0.001) for level in LEVELS
    )
    changes = []
    early = tuple(NoiseLevel.unmeasured(level.t, level.Dn) for level in LEVELS)
    plans = [Plan(), at(levels=early), at(), at(0.3), at(levels=nothing), at()]
    for step, plan in enumerate(plans):
        mechanism.plan(step, plan)
        for event in mechanism.observe(Signals(step + 1, iid(4), iid(4, 1), 1.0, 1e-3)):
            changes.append((step + 1, event.before, event.after))
            assert event.reason
    assert changes == [
        (2, "objective", "discrepancy"),
        (3, "discrepancy", "progress"),
        (5, "progress", "objective"),
        (6, "objective", "progress"),
    ]


def test_the_row_of_a_probe_holds_the_density() -> None:
    mechanism = build()
    assert mechanism.probe_row() == {}
    density = mechanism.plan(0, at()).density
    D_t = {0.15: 0.1, 0.55: 0.3, 0.9: 0.7}
    probe = Probe(D_t, dict.fromkeys(D_t, 0.0), dict.fromkeys(D_t, 1.0))
    mechanism.observe(Signals(1, iid(4), iid(4, 1), 1.0, 1e-3, probe))
    row = mechanism.probe_row()
    quantiles = density.quantile(double(0.1, 0.5, 0.9)).tolist()
    heights = density.pdf(double(0.15, 0.55, 0.9)).tolist()
    assert [row[f"density_{name}"] for name in ("q10", "q50", "q90")] == quantiles
    assert [row[f"density_t{name}"] for name in ("0.15", "0.55", "0.90")] == heights
    assert row["density_state"] == "progress"
    below = [0.0, *density.cdf(torch.arange(1, 40, dtype=torch.float64) / 40).tolist(), 1.0]
    shares = [high - low for low, high in itertools.pairwise(below)]
    assert row["density_shares"] == pytest.approx(shares, abs=1e-6)


def test_the_objectives_floor_is_drawn_with_and_without_the_mechanism(tmp_path: Path) -> None:
    normal = {"density": "logit-normal", "mean": 0.3, "std": 0.8}
    floored = Floored(LogitNormal(0.3, 0.8), 0.05)
    changes = {f"objective__{k}": v for k, v in {**normal, "floor": 0.05}.items()}
    assert (
        Stages.of(load_recipe(write_recipe(tmp_path / "f.toml", **changes))).plan(0).density
        == floored
    )
    for floor, expected in ((0.0, LogitNormal(0.3, 0.8)), (0.05, floored), (1.0, Uniform())):
        weighted = build(objective={**normal, "floor": floor}, kappa=1.0)
        assert weighted.reference == expected
        density = weighted.density(0, at())
        mean = integral(lambda t, d=density: d.pdf(t) * d.weight(t), density.breaks)
        assert mean == pytest.approx(1, abs=1e-6)


def test_progress_without_regime_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "a.toml", stage__timesteps__kind="progress"))
    with pytest.raises(StageError, match=r"stage\.regime"):
        Stages.of(recipe)
    result = run_cli("train", tmp_path / "a.toml", cwd=tmp_path)
    assert result.code == 2
    assert "[stage.regime]" in " ".join(result.stderr.split())
    assert not (tmp_path / "runs" / "a" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"stage__timesteps__kind": "adaptive"}, "stage.timesteps.kind", "`adaptive` is gone"),
        ({"stage__timesteps__m0": 1.6}, "stage.timesteps.m0", "this key is gone; delete it"),
        ({"stage__timesteps__follow_loss": True}, "stage.timesteps.follow_loss", "infonoise"),
        ({"stage__regime__window": 14}, "stage.regime.window", "this key is gone; delete it"),
        ({"stage__regime__failsafe": False}, "stage.regime.failsafe", "by measurement"),
    ],
)
def test_options_of_earlier_versions_are_refused_with_a_hint(
    changes: dict[str, Any], where: str, what: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "old.toml", **{**STAGE, **changes})
    with pytest.raises(StageError) as caught:
        load_recipe(recipe)
    (problem,) = caught.value.problems
    assert what in problem.what
    assert where.rpartition(".")[2] in (problem.excerpt or "")
    run = tmp_path / "run" / "recipe.toml"
    run.parent.mkdir()
    run.write_text(recipe.read_text())
    assert load_from_run(run).stage["regime"]["every"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0.5, "floor": 0.0}, "no bound"),
        ({"kappa": 0.5, "kind": "shift"}, "progress"),
        ({"floor_r": 0.5, "kind": "infonoise"}, "discrepancy"),
        ({"kind": "discrepancy", "power": 1.0, "power_r": 2.0}, "negative"),
        ({"kind": "truncated-logit-normal", "low": 0.5, "high": 0.5}, "below"),
        ({"kind": "truncated-logit-normal", "mean": 9.0, "high": 0.5}, "hardly anything"),
        ({"kind": "logit-normall"}, "logit-normal"),
        ({"kappa": 2.0}, "from 0 to 1"),
        ({"std": 0.0}, "from 0.05"),
    ],
)
def test_options_that_contradict_each_other(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        TimestepsOptions(**options)


def test_curriculum_switches_or_mixes_and_says_so() -> None:
    switch = build(kind="curriculum", at=0.6)
    assert switch.density(59, Plan()) == LogitNormal()
    assert switch.density(60, Plan()) == Uniform()
    mixing = build(kind="curriculum", at=0.5, mix=0.2)
    assert mixing.density(60, Plan()) == Floored(LogitNormal(), 0.5)
    for mechanism, changes in (
        (switch, [(60, "uniform")]),
        (mixing, [(51, "mixture"), (70, "uniform")]),
    ):
        events = []
        for step in range(100):
            mechanism.plan(step, Plan())
            signals = Signals(step + 1, torch.rand(4), torch.rand(4), 1.0, 1e-3)
            events += [(step + 1, event.after) for event in mechanism.observe(signals)]
        assert events == changes


@pytest.mark.parametrize("objective", [{}, {"density": "logit-normal", "mean": 0.3, "std": 0.7}])
def test_loss_second_moment_finds_a_peak_and_stays_unbiased(objective: dict[str, Any]) -> None:
    mechanism = build(kind="loss-second-moment", objective=objective)
    reference = mechanism.reference
    assert mechanism.density(0, Plan()) == reference
    feed(mechanism, peak, 400)
    density = mechanism.density(400, Plan())
    assert isinstance(density, Weighted)
    assert float(density.pdf(double(0.9)) / reference.pdf(double(0.9))) > 3
    assert float(density.pdf(double(0.3)) / reference.pdf(double(0.3))) < 0.5
    for f in (peak, *FUNCTIONS):
        plain = integral(lambda t, f=f: reference.pdf(t) * f(t))
        assert integral(
            lambda t, f=f: density.pdf(t) * density.weight(t) * f(t), density.breaks
        ) == pytest.approx(plain)
    t_B, w_B = density.sample(iid(20000))
    weighted = w_B * peak(t_B)
    plain = peak(reference.sample(iid(20000))[0])
    assert float(weighted.mean()) == pytest.approx(float(plain.mean()), rel=0.05)
    assert float(weighted.var()) < 0.2 * float(plain.var())


def test_loss_second_moment_by_hand() -> None:
    """Two bins, mean squares 1 and 9: sqrt 1 : 3, mixed with 0.1 of the reference."""
    mechanism = build(kind="loss-second-moment", bins=2, history=2, history_floor=0.1)
    for step in range(2):
        assert mechanism.density(step, Plan()) == Uniform()
        events = mechanism.observe(
            Signals(step + 1, torch.tensor([0.2, 0.9]), torch.tensor([1.0, 3.0]), 1.0, 1e-3)
        )
        assert [event.after for event in events] == (["following the loss"] if step == 1 else [])
    density = mechanism.density(2, Plan())
    low, high = density.pdf(double(0.2, 0.9)).tolist()
    assert (low, high) == pytest.approx((0.9 * 0.5 + 0.1, 0.9 * 1.5 + 0.1))
    assert density.weight(double(0.2, 0.9)).tolist() == pytest.approx([1 / low, 1 / high])
    mechanism.observe(
        Signals(3, torch.tensor([0.9, 0.2]), torch.tensor([3.0, math.nan]), 1.0, 1e-3)
    )
    assert mechanism.density(3, Plan()) == density  # a loss that is no number is not remembered


def test_what_is_remembered_does_not_depend_on_the_order_of_the_batch() -> None:
    one, other = (build(kind="loss-second-moment", bins=3, history=2) for _ in range(2))
    for step in range(4):
        t_B = iid(32, step)
        loss_B = iid(32, 100 + step)
        order = torch.randperm(32, generator=torch.Generator().manual_seed(step))
        one.observe(Signals(step + 1, t_B, loss_B, 1.0, 1e-3))
        other.observe(Signals(step + 1, t_B[order], loss_B[order], 1.0, 1e-3))
    assert one.density(4, Plan()) == other.density(4, Plan())
    assert one.metrics() == other.metrics()


@pytest.mark.parametrize(
    "options", [{"kind": "loss-second-moment", "bins": 5}, {"kind": "infonoise", "bins": 5}]
)
def test_state_survives_a_checkpoint_to_the_bit(options: dict[str, Any]) -> None:
    from stagecli.runs.checkpoint import pack, unpack

    whole = build(**options)
    cut = build(**options)
    feed(whole, peak, 120)
    feed(cut, peak, 60)
    tree, tensors = pack(cut.state_dict())
    resumed = build(**options)
    resumed.load_state_dict(unpack(json.loads(json.dumps(tree)), tensors))
    feed(cut, peak, 60, first=60)  # the original going on must not change what was saved
    feed(resumed, peak, 60, first=60)
    assert resumed.density(120, Plan()) == whole.density(120, Plan()) == cut.density(120, Plan())
    assert resumed.metrics() == whole.metrics()
    for other in (build(kind="uniform"), build(**{**options, "bins": 6})):
        with pytest.raises(StageError, match="another name"):
            other.load_state_dict(whole.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_say_what_was_drawn(kind: str) -> None:
    mechanism = build(kind=kind, weighting="min-snr")
    assert mechanism.metrics() == {}
    feed(mechanism, peak, 80)
    values = mechanism.metrics()
    assert 0 < values["t_q10"] < values["t_q50"] < values["t_q90"] < 1
    assert 0 < values["ess"] < 1
    assert len(mechanism.t_N) == 1024
    if kind == "progress":
        expected = mechanism.density(0, at(0.2)).quantile(double(0.1, 0.5, 0.9)).tolist()
        assert [values["t_q10"], values["t_q50"], values["t_q90"]] == pytest.approx(
            expected, abs=0.01
        )


def test_the_plan_is_pure_and_keeps_the_rest() -> None:
    mechanism = build()
    plan = Plan(r=0.4, levels=LEVELS, hidden=(1,), active=("other",), loss_weight=torch.ones_like)
    first = mechanism.plan(3, plan)
    second = mechanism.plan(3, plan)
    assert first == second
    assert (first.r, first.hidden, first.active, first.loss_weight) == (
        0.4,
        (1,),
        ("other",),
        torch.ones_like,
    )
    assert build(kind="shift", weighting="min-snr").plan(0, plan).loss_weight is not torch.ones_like


def test_weights_hardly_cost_anything_twice() -> None:
    """Integrals are cached per density."""
    density = Weighted(Floored(EARLY, 0.05), Uniform(), 0.5)
    LossWeight((MinSNR(),), density)(torch.rand(4))
    before = loss_weights.mean_weight.cache_info().hits
    LossWeight((MinSNR(),), Weighted(Floored(LogitLogistic(0.4, 0.56), 0.05), Uniform(), 0.5))(
        torch.rand(4)
    )
    assert loss_weights.mean_weight.cache_info().hits == before + 1


# -- in training -----------------------------------------------------------------------------------


def stage(kind: str, **more: Any) -> dict[str, Any]:
    regime = STAGE if kind in ("progress", "discrepancy") else {}
    small = SMALL if kind in ("loss-second-moment", "infonoise") else {}
    return {**regime, **small, "stage__timesteps__kind": kind, **more}


def trained(folder: Path, name: str, task: str = "t2a", **changes: Any) -> Path:
    recipe = write_recipe(folder / f"{name}.toml", task, **{"train__samples": 0, **changes})
    result: Result = run_cli("train", recipe, cwd=folder)
    assert result.code == 0, result.stderr
    return folder / "runs" / name


def source_run(folder: Path) -> Path:
    """The run directory of a regime to replay: progress at three noise levels from step 3 on."""
    run = folder / "source"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"steps": 10}))
    rows = []
    for step in range(1, 11):
        row: dict[str, Any] = {"step": step, "r": 0.1 * step, "r_now": 0.1 * step}
        for level in LEVELS if step >= 3 else ():
            name = f"{level.t:.2f}"
            row |= {f"Dn_t{name}": level.Dn, f"G_t{name}": level.made + 0.01 * step}
            row |= {f"R_t{name}": level.to_come}
        rows.append(row)
    (run / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def replayed(folder: Path) -> dict[str, Any]:
    """Sections of a recipe whose regime replays `source_run`."""
    return {
        **STAGE,
        "stage__regime__source": "replay",
        "stage__regime__replay": str(source_run(folder)),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/progress and runs/loss-second-moment, never stopped."""
    folder = tmp_path_factory.mktemp("timesteps")
    trained(
        folder,
        "progress",
        **stage(
            "progress",
            **replayed(folder),
            stage__timesteps__kappa=0.5,
            stage__timesteps__floor_r=0.35,
            stage__timesteps__weighting="min-snr",
        ),
    )
    trained(folder, "loss-second-moment", **stage("loss-second-moment"))
    return folder


@pytest.mark.parametrize("task", ["t2a", "sr"])
def test_uniform_trains_as_no_stage_at_all(task: str, tmp_path: Path) -> None:
    plain = trained(tmp_path, "plain", task)
    run = trained(tmp_path, "uniform", task, stage__timesteps__kind="uniform")
    assert losses_of(run) == losses_of(plain)
    assert weights(run) == weights(plain)
    assert facts(run, "bins") == facts(plain, "bins")


@pytest.mark.parametrize(
    ("kind", "task", "more"),
    [
        *((kind, "t2a", {}) for kind in KINDS if kind not in ("progress", "uniform")),
        ("progress", "sr", {"stage__timesteps__floor_r": 0.3}),
        ("infonoise", "sr", {"objective__density": "logit-normal"}),
        ("speed", "sr", {"stage__timesteps__weighting": "min-snr"}),
        ("loss-second-moment", "sr", {"objective__density": "logit-normal"}),
        ("curriculum", "t2a", {"stage__timesteps__mix": 0.3, "train__precision": "bf16"}),
    ],
)
def test_every_kind_trains(kind: str, task: str, more: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, "k", task, **{**stage(kind), **more, "train__steps": 5})
    rows = [row for row in read_rows(run) if "train/loss" in row]
    assert len(rows) == 5
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert all(0 < row["stage/timesteps/t_q10"] < row["stage/timesteps/t_q90"] < 1 for row in rows)
    if kind == "curriculum":
        assert [e["to"] for e in read_rows(run, "events") if e["mechanism"] == "timesteps"] in (
            ["uniform"],
            ["mixture"],
        )


def test_t_follows_the_progress_while_training(whole: Path) -> None:
    """The levels come with the probe after step 3, so t follows them from step 4 on."""
    run = whole / "runs" / "progress"
    probes = read_rows(run, "probes")
    assert [row["density_state"] for row in probes] == ["objective"] * 3 + ["progress"] * 7
    assert [row["density_q50"] for row in probes[:3]] == pytest.approx([0.5] * 3)
    medians = [row["density_q50"] for row in probes[3:]]
    assert medians == sorted(medians, reverse=True)  # the floor grows with r
    assert 0.6 < medians[-1] < medians[0] < 0.8
    rows = [row for row in read_rows(run) if "train/loss" in row]
    assert all(0 < row["stage/timesteps/ess"] <= 1 for row in rows)
    table = load_recipe(run / "recipe.toml").stage["timesteps"]
    assert (table["floor"], table["gamma"], table["kappa"]) == (0.1, 5.0, 0.5)
    assert [(step, to) for step, to, _ in timesteps_events(run)] == [(4, "progress")]


def timesteps_events(run: Path) -> set[tuple[int, str, str]]:
    return {
        (event["step"], event["to"], event["reason"])
        for event in read_rows(run, "events")
        if event["mechanism"] == "timesteps"
    }


@pytest.mark.parametrize(
    ("kind", "step"), [("progress", 7), ("loss-second-moment", 3), ("loss-second-moment", 10)]
)
def test_kill_9_and_resume_draw_the_same_t(
    kind: str, step: int, whole: Path, tmp_path: Path
) -> None:
    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == step)

    recipe = whole / f"{kind}.toml"
    killed(tmp_path, "train", recipe, arrange=arrange)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / kind
    reference = whole / "runs" / kind
    assert attempts(run) == [0, {3: 0, 7: 4, 10: 8}[step]]
    assert facts(run) == facts(reference)
    assert facts(run, "bins") == facts(reference, "bins")
    assert weights(run) == weights(reference)
    expected = timesteps_events(reference)
    assert timesteps_events(run) == expected
    if kind == "loss-second-moment":
        assert [to for _, to, _ in expected] == ["following the loss"]
    assert sha(run / "recipe.toml") == sha(reference / "recipe.toml")


@pytest.mark.parametrize("kind", ["progress", "loss-second-moment"])
def test_two_processes_draw_the_t_of_one(kind: str, whole: Path, tmp_path: Path) -> None:
    """gloo on two processes.

    Where t follows only the step it is the same to the bit; where it follows losses, as near as
    they are.
    """
    two_processes("train", whole / f"{kind}.toml", cwd=tmp_path)
    run = tmp_path / "runs" / kind
    alone = whole / "runs" / kind
    ours, theirs = ([row for row in read_rows(r) if "train/loss" in row] for r in (run, alone))
    assert losses_of(run) == pytest.approx(losses_of(alone), rel=1e-3)
    for name in ("t_q10", "t_q50", "t_q90", "ess"):
        values, expected = (
            [row[f"stage/timesteps/{name}"] for row in rows] for rows in (ours, theirs)
        )
        assert values == (expected if kind == "progress" else pytest.approx(expected, rel=1e-3)), (
            name
        )
