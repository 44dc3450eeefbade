"""Objective, samplers, cfg, windows, learning rate and densities of t against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from stagecli.flow import sampler
from stagecli.flow.objective import flow_loss, interpolate
from stagecli.flow.schedule import learning_rate
from stagecli.model.dit import Output
from stagecli.schema import Train
from stagecli.stage.densities import LogitNormal, Uniform


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- objective ------------------------------------------------------------------------------------


def test_convention_of_t() -> None:
    x0 = normal(2, 3, 4)
    noise = normal(2, 3, 4, seed=1)
    assert interpolate(x0, noise, torch.zeros(2)).equal(x0)
    assert interpolate(x0, noise, torch.ones(2)).equal(noise)
    mixed = interpolate(x0, noise, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(mixed[0], 0.75 * x0[0] + 0.25 * noise[0])


def test_the_true_velocity_has_no_loss_and_gives_x0_back() -> None:
    x0 = normal(5, 3, 4)
    noise = normal(5, 3, 4, seed=1)
    t = torch.linspace(0, 1, 5)
    result = flow_loss(lambda x, t, condition, hidden: Output(noise - x0), x0, noise, t, None)
    assert result.loss_B.shape == (5,)
    assert float(result.loss_B.max()) == 0.0
    torch.testing.assert_close(result.x0_hat_BTC, x0, atol=1e-6, rtol=0)


def test_loss_is_per_sample_and_the_network_gets_x_t() -> None:
    x0 = normal(3, 4, 2)
    noise = normal(3, 4, 2, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9])
    off = torch.tensor([0.0, 1.0, 2.0])[:, None, None]

    def network(x: Tensor, t_B: Tensor, condition: object, hidden: tuple[int, ...]) -> Output:
        assert x.equal(interpolate(x0, noise, t))
        assert t_B.equal(t)
        assert condition == "condition"
        return Output(noise - x0 + off, {k: x for k in hidden})

    result = flow_loss(network, x0, noise, t, "condition", return_hidden=(2, 5))
    torch.testing.assert_close(result.loss_B, torch.tensor([0.0, 1.0, 4.0]))
    assert set(result.hidden) == {2, 5}


def test_the_loss_is_the_weighted_mean() -> None:
    x0 = torch.zeros(2, 4, 3)
    noise = torch.zeros(2, 4, 3)
    t = torch.full((2,), 0.5)
    error = torch.full((2, 4, 3), 3.0)
    error[0, :2] = 1.0
    weight = torch.zeros(2, 4, 1)
    weight[0, :2] = 1.0

    def loss(velocity: Tensor, weight: Tensor | None) -> list[float]:
        return flow_loss(
            lambda *_: Output(velocity), x0, noise, t, None, weight_BTC=weight
        ).loss_B.tolist()

    # The second sample has no weight anywhere: no loss, and no division by zero.
    assert loss(error, weight) == [1.0, 0.0]
    assert loss(error, torch.ones(1, 1, 3)) == loss(error, None) == [5.0, 9.0]
    changed = error.clone()
    changed[0, 2:] = 100.0
    assert loss(changed, weight) == [1.0, 0.0]


def test_loss_is_fp32_whatever_the_network_returns() -> None:
    x0 = normal(2, 3, 4)
    result = flow_loss(lambda x, *_: Output(x.bfloat16()), x0, x0, torch.full((2,), 0.3), None)
    assert result.loss_B.dtype == torch.float32
    assert result.velocity_BTC.dtype == torch.float32


# --- samplers -------------------------------------------------------------------------------------

# x0 ~ N(MEAN, SPREAD^2)
MEAN = 0.7
SPREAD = 0.4


def gaussian(x: Tensor, t: float) -> Tensor:
    """E[eps - x0 | x_t = x] in closed form."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    residual = x - (1 - t) * MEAN
    return t * residual / variance - MEAN - (1 - t) * SPREAD**2 * residual / variance


def error_of(solve: Callable[..., Tensor], steps: int, shift: float = 1.0) -> float:
    """Against the exact end point MEAN + SPREAD * x(1)."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, :, None]
    return float(
        (solve(gaussian, x, sampler.times(steps, shift)) - (MEAN + SPREAD * x)).abs().max()
    )


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("ab2", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_order_of_convergence(name: str, order: int, shift: float) -> None:
    solve = sampler.SAMPLERS[name]
    errors = [error_of(solve, steps, shift) for steps in (128, 256, 512)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert abs(math.log2(coarse / fine) - order) < 0.3
    assert errors[-1] < {1: 1e-2, 2: 2e-4}[order]


@pytest.mark.parametrize(("name", "calls"), [("euler", 10), ("heun", 19), ("ab2", 10)])
def test_network_calls_and_callback(name: str, calls: int) -> None:
    times: list[float] = []
    callbacks: list[tuple[int, float, Tensor]] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return gaussian(x, t)

    grid = sampler.times(10)
    end = sampler.SAMPLERS[name](velocity, normal(1, 4, 2), grid, lambda *a: callbacks.append(a))
    assert len(times) == calls
    assert min(times) > 0  # v at t = 0 is not trained
    assert [(i, t) for i, t, _ in callbacks] == list(enumerate(grid[1:]))
    assert callbacks[-1][2].equal(end)


@pytest.mark.parametrize("name", sampler.SAMPLERS)
@given(steps=st.integers(1, 30), shift=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_a_straight_path_is_exact_in_any_number_of_steps(
    name: str, steps: int, shift: float
) -> None:
    x = normal(1, 3, 2)
    v = normal(1, 3, 2, seed=1)
    end = sampler.SAMPLERS[name](lambda x, t: v, x, sampler.times(steps, shift))
    torch.testing.assert_close(end, x - v, atol=1e-5, rtol=0)


@given(steps=st.integers(1, 200), shift=st.floats(0.05, 20))
@settings(max_examples=50, deadline=None)
def test_times(steps: int, shift: float) -> None:
    grid = sampler.times(steps, shift)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (pytest.approx(1.0), 0.0)
    assert all(a > b for a, b in zip(grid, grid[1:], strict=False))
    assert (sum(grid) >= sum(sampler.times(steps)) - 1e-9) == (shift >= 1 or steps == 1)


# --- classifier-free guidance ---------------------------------------------------------------------


def test_cfg_of_scale_one_does_not_call_the_unconditional() -> None:
    def never(x: Tensor, t: float) -> Tensor:
        raise AssertionError("called")

    v = sampler.classifier_free(gaussian, never, 1.0, (0.0, 1.0))
    assert v(torch.ones(1, 1, 1), 0.5).equal(gaussian(torch.ones(1, 1, 1), 0.5))


def test_cfg_formula_and_interval() -> None:
    calls: list[float] = []

    def plain(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return torch.full_like(x, 1.0)

    v = sampler.classifier_free(lambda x, t: torch.full_like(x, 3.0), plain, 2.5, (0.25, 0.75))
    values = {t: float(v(torch.zeros(1, 1, 1), t)) for t in (0.1, 0.25, 0.5, 0.75, 0.9)}
    assert values == {0.1: 3.0, 0.25: 6.0, 0.5: 6.0, 0.75: 6.0, 0.9: 3.0}
    assert calls == [0.25, 0.5, 0.75]
    off = sampler.classifier_free(lambda x, t: torch.full_like(x, 3.0), plain, 0.0, (0.0, 1.0))
    assert float(off(torch.zeros(1, 1, 1), 0.5)) == 1.0


@pytest.mark.parametrize("name", sampler.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_kept_band_is_the_input_at_the_end(name: str, steps: int) -> None:
    x = normal(2, 5, 4)
    kept = normal(2, 5, 4, seed=1)
    band = torch.tensor([[True, True, False, False], [True, False, False, False]])
    v = sampler.keep_band(gaussian, kept, band)
    end = sampler.SAMPLERS[name](v, x, sampler.times(steps))
    inside = band[:, None, :].expand_as(end)
    torch.testing.assert_close(end[inside], kept[inside], atol=1e-5, rtol=0)
    free = sampler.SAMPLERS[name](gaussian, x, sampler.times(steps))
    assert end[~inside].equal(free[~inside])
    halfway: list[Tensor] = []
    sampler.SAMPLERS[name](
        v, x, sampler.times(20), lambda i, t, now: halfway.append(now) if i == 9 else None
    )
    expected = 0.5 * kept + 0.5 * x  # on the straight line between noise and input
    torch.testing.assert_close(halfway[0][inside], expected[inside], atol=1e-5, rtol=0)


# --- windows --------------------------------------------------------------------------------------

lengths = st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)


@given(*lengths)
@settings(max_examples=150, deadline=None)
def test_windows_cover_any_length(frames: int, window: int, hop: int, group: int) -> None:
    hop = min(hop, window)
    starts = sampler.window_starts(frames, window, hop)
    size = min(frames, window)
    covered = {f for start in starts for f in range(start, start + size)}
    assert covered == set(range(frames))
    assert starts == sorted(set(starts))
    assert starts[-1] + size == frames
    pieces = sampler.windows(torch.arange(frames)[None, :, None], starts, window)
    assert pieces.shape == (len(starts), size, 1)
    assert pieces[:, 0, 0].tolist() == starts


@given(*lengths)
@settings(max_examples=60, deadline=None)
def test_a_pointwise_velocity_is_the_same_in_windows(
    frames: int, window: int, hop: int, group: int
) -> None:
    """A constant stays constant too: no seams where windows meet."""
    seen: list[int] = []

    def of_windows(x: Tensor, t: float, numbers: slice) -> Tensor:
        assert x.shape[0] == numbers.stop - numbers.start <= group
        seen.extend(range(numbers.start, numbers.stop))
        return gaussian(x, t)

    hop = min(hop, window)
    x = normal(1, frames, 2)
    whole = sampler.windowed(of_windows, frames, window, hop, group)
    torch.testing.assert_close(whole(x, 0.4), gaussian(x, 0.4), atol=1e-5, rtol=1e-5)
    assert seen == list(range(len(sampler.window_starts(frames, window, hop))))
    flat = sampler.windowed(lambda x, t, which: torch.ones_like(x), frames, window, hop, group)
    torch.testing.assert_close(flat(x, 0.4), torch.ones_like(x), atol=1e-6, rtol=0)


def test_windows_that_disagree_are_blended_without_a_jump() -> None:
    frames = 64
    window = 16
    hop = 8

    def of_windows(x: Tensor, t: float, numbers: slice) -> Tensor:
        return torch.arange(numbers.start, numbers.stop).float()[:, None, None].expand_as(x)

    v = sampler.windowed(of_windows, frames, window, hop, 3)(torch.zeros(1, frames, 1), 0.5)[
        0, :, 0
    ]
    assert float(v[0]) == 0.0
    assert float(v[-1]) == 6.0
    assert float(v.diff().abs().max()) < 0.25  # one window's step of 1 is spread over the overlap


# --- learning rate --------------------------------------------------------------------------------


def rates(**changes: object) -> list[float]:
    options = Train.model_validate(
        {"steps": 100, "warmup_steps": 10, "lr": 2.0, "lr_end": 0.1, **changes}
    )
    return [learning_rate(step, options) for step in range(101)]


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_warm_up_is_linear_and_never_zero(schedule: str) -> None:
    by_step = rates(schedule=schedule)
    assert by_step[:11] == pytest.approx([0.2 * (i + 1) for i in range(10)] + [2.0])
    assert rates(schedule=schedule, warmup_steps=0)[0] == 2.0
    assert max(by_step) == 2.0
    assert min(by_step) > 0


def test_schedules() -> None:
    assert rates(schedule="constant")[10:] == [2.0] * 91
    cosine = rates(schedule="cosine")
    assert cosine[55] == pytest.approx(0.5 * (2.0 + 0.2))
    assert cosine[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(cosine[10:], cosine[11:], strict=False))
    wsd = rates(schedule="wsd")
    assert wsd[10:81] == [2.0] * 71
    assert wsd[90] == pytest.approx(0.2 + 0.5 * 1.8)
    assert wsd[100] == pytest.approx(0.2)


# --- densities of t -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (1.2, 1.5)])
def test_logit_normal_is_the_closed_form(mean: float, std: float) -> None:
    u = torch.from_numpy(np.random.default_rng(0).random(4000)).float()
    t, weight = LogitNormal(mean, std).sample(u)
    assert weight.equal(torch.ones(4000))

    def distribution(t: np.ndarray) -> np.ndarray:
        return stats.norm.cdf((np.log(t / (1 - t)) - mean) / std)

    assert stats.kstest(t.double().numpy(), distribution).pvalue > 0.01
    assert stats.kstest(t.double().numpy(), stats.uniform.cdf).pvalue < 1e-6  # the test can tell
    # Quantile by quantile, to float32.
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    np.testing.assert_allclose(
        distribution(LogitNormal(mean, std).sample(grid)[0].double().numpy()), grid, atol=1e-6
    )


def test_logit_normal_stays_inside_at_the_ends() -> None:
    t, _ = LogitNormal(0.0, 1.0).sample(torch.tensor([1e-5, 1 - 1e-5]))
    assert 0 < float(t[0]) < 0.05
    assert 0.95 < float(t[1]) < 1


def test_uniform() -> None:
    u = torch.rand(10, generator=torch.Generator().manual_seed(0))
    t, weight = Uniform().sample(u)
    assert t.equal(u)
    assert weight.equal(torch.ones(10))
