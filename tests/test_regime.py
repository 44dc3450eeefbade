"""The regime variable on curves whose truth is known, with noise and gaps.

Probes count from 1; a run has 60 of them, one every 100 steps, with optimiser time equal to the
step, so that it ends at step 6,000.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, theilslopes

from stagecli.metrics.theil_sen import kendall_z, theil_sen
from stagecli.report.regime_sentences import horizon, regime_sentences, share_in_words
from stagecli.stage.regime_controls import Control, linear, replay
from stagecli.stage.regime_progress import ProbeHistory, measure_levels
from stagecli.stage.regime_slope import fit_line
from stagecli.stage.regime_variable import Regime, RegimeSettings, Transition

PROBES = 60
EVERY = 100
STEPS = PROBES * EVERY
SEEDS = 20
SHARE = np.arange(1, PROBES + 1) / PROBES
CURVES = {  # Dn without noise; `share` of the budget on the axis
    "steady": 0.9 - 0.6 * SHARE,
    "sound": 0.95 * np.exp(-0.8 * SHARE)
    + 0.9 * np.exp(-SHARE / 0.03),  # from noise (Dn 1.7) to sound, then steady
    "decay": 0.3 + 0.9 * np.exp(-SHARE / 0.12),
    "power": 0.9 * (SHARE / 0.05 + 1) ** -0.6,
    "two-stage": np.exp(
        -0.05 - np.where(SHARE < 0.35, SHARE / 0.35, 1 + 0.12 * (SHARE - 0.35))
    ),  # at probe 21
    "plateau": np.where(SHARE < 0.3, 0.95, 0.3 + 0.65 * np.exp(-(SHARE - 0.3) / 0.15)),
    "rise": np.where(
        SHARE < 0.3, 0.9 * np.exp(-3 * SHARE), 0.9 * np.exp(-0.9 + 0.8 * (SHARE - 0.3))
    ),  # from probe 18
    "noise only": np.full(PROBES, 0.9),
}
FALLING = ("steady", "sound", "decay", "power", "two-stage", "plateau")


def noisy(curve: str, seed: int, sd: float, rho: float = 0.5) -> np.ndarray:
    """The curve times AR(1) noise of relative size sd."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(PROBES + 50)
    noise = np.zeros(PROBES + 50)
    for i in range(1, PROBES + 50):
        noise[i] = rho * noise[i - 1] + math.sqrt(1 - rho * rho) * white[i]
    return CURVES[curve] * np.exp(sd * noise[50:])


def new_regime(control: Control | None = None, probes: int = PROBES) -> Regime:
    return Regime(RegimeSettings(probes=probes, tau_end=float(probes * EVERY)), control)


def follow(
    values: Sequence[Any], regime: Regime | None = None
) -> tuple[list[float], list[tuple[int, str]], list[dict[str, Any]]]:
    """r after every probe, (probe, to) of every event, and the rows.

    values: Dn of every probe, or Dn by noise level.
    """
    regime = regime or new_regime()
    trace = []
    events = []
    rows = []
    for i, value in enumerate(values, 1):
        by_level = value if isinstance(value, dict) else {0.5: value}
        Dn_t = {t: float(Dn) for t, Dn in by_level.items()}
        found = regime.observe(i * EVERY, float(i * EVERY), Dn_t)
        events += [(i, event.after) for event in found]
        trace.append(regime.r)
        by_t = {f"Dn_t{t:.2f}": Dn for t, Dn in Dn_t.items()}
        rows.append({"step": i * EVERY, **by_t, **regime.row()})
    return trace, events, rows


@cache
def many(curve: str, sd: float) -> list[tuple[list[float], list[tuple[int, str]]]]:
    return [follow(noisy(curve, seed, sd))[:2] for seed in range(SEEDS if sd else 1)]


def passed(trace: list[float], level: float = 0.5) -> float:
    """The probe at which r reached `level`."""
    return next((i for i, r in enumerate(trace, 1) if r >= level), math.inf)


# --- the formula ----------------------------------------------------------------------------------


def test_progress_by_hand() -> None:
    """Dn 0.9, 0.8, ... 0.5 at t = 0.5, flat at 0.9: slope -0.1 per probe, 5 of 10 probes left."""
    history = ProbeHistory()
    for i in range(5):
        history.add(i + 1, float(i + 1), {0.5: 0.9 - 0.1 * i, 0.9: 0.9})
    low, high = measure_levels(history, tau_end=10.0)
    assert (low.Dn, low.made, low.to_come) == pytest.approx((0.5, 0.2, 0.5))
    assert (low.r, low.scope) == pytest.approx((2 / 7, 0.7))
    assert (high.made, high.to_come, high.r) == (0, 0, 0)
    regime = Regime(RegimeSettings(probes=10, tau_end=10.0))
    for i in range(5):
        regime.observe(i + 1, float(i + 1), {0.5: 0.9 - 0.1 * i, 0.9: 0.9})
    assert regime.r == regime.r_now == pytest.approx(0.2 / 0.72)


def test_progress_to_come_is_at_most_what_is_left_of_dn() -> None:
    history = ProbeHistory()
    for i in range(5):
        history.add(i + 1, float(i + 1), {0.5: 0.9 - 0.1 * i})
    assert measure_levels(history, tau_end=1000.0)[0].to_come == pytest.approx(0.6)


def test_the_scope_is_averaged_over_probes() -> None:
    history = ProbeHistory()
    levels: tuple[Any, ...] = ()
    scopes = []
    totals = []
    for i, Dn in enumerate((0.9, 0.9, 0.8, 0.7, 0.6, 0.3, 0.3)):
        history.add(i + 1, float(i + 1), {0.5: Dn})
        levels = measure_levels(history, 10.0, levels)
        scopes += [level.scope for level in levels]
        totals += [level.made + level.to_come for level in levels]
    assert scopes[0] == totals[0]
    assert scopes[1] == pytest.approx((totals[0] + totals[1]) / 2)
    assert scopes[2] == pytest.approx((scopes[1] + totals[2]) / 2)


def test_r_is_measured_from_the_fifth_probe_on() -> None:
    trace, events, rows = follow(CURVES["steady"])
    assert trace[:4] == [0] * 4
    assert trace[4] > 0
    assert events[0] == (5, "acquisition")
    assert [row["stage"] for row in rows[3:5]] == ["waiting", "acquisition"]
    assert "G_t0.50" not in rows[3]
    assert {"G_t0.50", "R_t0.50", "r_t0.50"} <= set(rows[4])


# --- curves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sd", "width"), [(0.0, 0.06), (0.01, 0.12)])
def test_on_a_steady_curve_r_is_the_share_of_the_optimiser_time(sd: float, width: float) -> None:
    for trace, _ in many("steady", sd):
        assert np.abs(np.array(trace) - SHARE)[9:].max() <= width


def test_the_learning_rate_schedule_is_taken_out() -> None:
    """Dn falls steadily in optimiser time, which the cosine slows down in the steps."""
    rate = 0.5 * (1 + np.cos(np.pi * SHARE))
    tau = np.cumsum(rate) * EVERY
    regime = Regime(RegimeSettings(probes=PROBES, tau_end=float(tau[-1])))
    for i in range(PROBES):
        regime.observe((i + 1) * EVERY, float(tau[i]), {0.5: float(0.9 - 0.6 * tau[i] / tau[-1])})
        if i >= 9:
            assert regime.r == pytest.approx(tau[i] / tau[-1], abs=0.1)


@pytest.mark.parametrize("curve", FALLING)
@pytest.mark.parametrize("sd", [0.0, 0.01, 0.03])
def test_r_reaches_the_end_of_its_scale_by_itself(curve: str, sd: float) -> None:
    assert all(trace[-1] > 0.9 for trace, _ in many(curve, sd))


def test_after_the_first_of_two_stages_r_is_high_and_stays() -> None:
    """At probe 21 the fall slows down to an eighth: 0.8 by the half of the budget."""
    for sd in (0.0, 0.01, 0.03):
        for trace, events in many("two-stage", sd):
            assert trace[14] < 0.5
            assert trace[29] >= 0.8
            assert next(i for i, to in events if to == "refinement") == passed(trace) + 2


def test_a_curve_that_falls_late_is_not_over_before_it_falls() -> None:
    """A plateau until probe 18: noise on it is no progress worth a decision."""
    for sd in (0.0, 0.01):
        for trace, _ in many("plateau", sd):
            assert trace[17] < 0.55
            assert 0.4 <= trace[29] <= 0.6


def test_half_of_the_progress_is_found_at_the_same_time_in_every_seed() -> None:
    for curve in FALLING:
        if curve != "plateau":
            halves = [passed(trace) for trace, _ in many(curve, 0.01)]
            assert max(halves) - min(halves) <= 0.12 * PROBES, curve


def test_noise_alone_does_not_end_anything() -> None:
    """Its spread counts as a little progress; what is final waits for more than that."""
    assert many("noise only", 0.0)[0][0][-1] == 0
    ends = sorted(trace[-1] for trace, _ in many("noise only", 0.01))
    assert ends[SEEDS // 2] < 0.6
    assert ends[-1] < 0.8


# --- the alarm ------------------------------------------------------------------------------------


def test_a_rise_raises_an_alarm_and_holds_r() -> None:
    trace, events, rows = follow(CURVES["rise"])
    frozen = next(i for i, to in events if to == "frozen")
    assert 18 < frozen <= 26
    assert len(set(trace[frozen - 1 :])) == 1
    assert rows[frozen - 1]["frozen"]
    assert not rows[frozen - 2]["frozen"]
    caught = [any(to == "frozen" for _, to in events) for _, events in many("rise", 0.01)]
    assert sum(caught) >= 18
    assert max(trace[-1] for trace, _ in many("rise", 0.01)) < 0.9


def test_false_alarms_are_rare() -> None:
    for curve in FALLING:
        assert not any(to == "frozen" for _, events in many(curve, 0.01) for _, to in events)
    flat = [any(to == "frozen" for _, to in events) for _, events in many("noise only", 0.01)]
    assert sum(flat) <= 2


def test_thaw() -> None:
    """Dn rises from probe 20 to 35, then falls: one alarm, one thaw, no change of r in between."""
    values = np.concatenate([0.9 * np.exp(-np.arange(20) / 20), 0.35 * np.exp(np.arange(15) / 30)])
    values = np.concatenate([values, values[-1] * np.exp(-np.arange(25) / 25)])
    trace, events, _ = follow(values)
    frozen = [i for i, to in events if to == "frozen"]
    stages = ("acquisition", "refinement")
    thawed = [i for i, to in events if to in stages and frozen and i > frozen[0]]
    assert len(frozen) == 1
    assert 20 < frozen[0] < 30
    assert 35 < thawed[0] < 50
    assert len(set(trace[frozen[0] - 1 : thawed[0] - 1])) == 1


# --- gaps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_probe_without_a_number_leaves_r_as_it_is(value: float) -> None:
    values: list[Any] = [{0.3: Dn, 0.7: Dn} for Dn in CURVES["decay"]]
    values[29] = {0.3: 0.4, 0.7: value}
    regime = new_regime()
    trace, events, rows = follow(values, regime)
    assert trace[29] == trace[28] < trace[30]
    assert [to for i, to in events if i == 30] == ["refinement"]
    assert rows[29]["Dn"] is None
    assert "G_t0.30" not in rows[29]
    assert trace[-1] >= 0.9
    json.dumps(regime.state_dict(), allow_nan=False)


def test_no_probe_with_a_number_leaves_r_at_0() -> None:
    trace, events, rows = follow([math.nan] * PROBES)
    assert trace[-1] == 0
    assert {to for _, to in events} == {"waiting"}
    assert rows[-1]["Dn"] is None


def test_constant_time_or_discrepancy_is_no_error() -> None:
    regime = Regime(RegimeSettings(probes=40, tau_end=0.0))
    for step in range(1, 41):
        regime.observe(step, 0.0, {0.5: 0.5})
    assert json.dumps(regime.row(), allow_nan=False)
    again = Regime(RegimeSettings(probes=40, tau_end=0.0))
    again.load_state_dict(json.loads(json.dumps(regime.state_dict(), allow_nan=False)))
    assert again.row() == regime.row()
    assert follow(np.zeros(PROBES))[0][-1] == 0  # nothing was learnt, and nothing was left to learn


def test_backwards_is_refused() -> None:
    regime = new_regime()
    regime.observe(10, 10.0, {0.5: 0.5})
    for step, tau in [(10, 11.0), (20, 9.0), (20, math.nan)]:
        with pytest.raises(ValueError, match="after step 10"):
            regime.observe(step, tau, {0.5: 0.5})


# --- numerics -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-5, 5)), min_size=2, max_size=25))
def test_theil_sen_is_that_of_scipy(points: list[tuple[int, float]]) -> None:
    x = [float(a) for a, _ in sorted(points)]
    y = [b for _, b in sorted(points)]
    if x[0] == x[-1]:
        assert theil_sen(x, y) == 0
        return
    assert theil_sen(x, y) == pytest.approx(theilslopes(y, x).slope, rel=1e-12, abs=1e-12)


def test_theil_sen_on_noisy_curves() -> None:
    x = np.arange(20.0)
    for seed in range(50):
        y = np.log(noisy("decay", seed, 0.03)[40:60])
        assert theil_sen(list(x), list(y)) == pytest.approx(theilslopes(y, x).slope, rel=1e-12)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=25, unique=True))
def test_kendalls_z_is_that_of_scipy_without_ties(values: list[int]) -> None:
    n = len(values)
    score = kendalltau(range(n), values).statistic * n * (n - 1) / 2
    variance = n * (n - 1) * (2 * n + 5) / 18
    assert kendall_z(values) == pytest.approx(score / math.sqrt(variance))
    assert kendall_z(values[:1]) == 0


@pytest.mark.parametrize(("rho", "low", "high"), [(0.0, 0.85, 0.99), (0.5, 0.80, 0.98)])
def test_the_error_of_the_slope_covers(rho: float, low: float, high: float) -> None:
    """Two standard errors hold the true slope about as often as they should, AR(1) or not."""
    x = [float(i) for i in range(20)]
    hits = 0
    for seed in range(200):
        y = [float(v) for v in np.log(noisy("noise only", seed, 0.01, rho)[20:40])]
        line = fit_line(x, y)
        hits += abs(line.slope) <= 2 * line.se
    assert low <= hits / 200 <= high


def test_rise_has_a_small_p_and_a_fall_a_large_one() -> None:
    x = [float(i) for i in range(20)]
    assert fit_line(x, x).p_rise < 1e-6
    assert fit_line(x, [-v for v in x]).p_rise > 1 - 1e-6
    assert fit_line(x, [1.0] * 20).p_rise == pytest.approx(0.5)


# --- what always holds ----------------------------------------------------------------------------

ANYTHING = st.one_of(st.floats(-1, 3), st.just(math.nan), st.just(math.inf))
LEVEL_VALUES = st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(LEVEL_VALUES)
def test_r_is_monotone_bounded_and_slow(values: list[tuple[float, ...]]) -> None:
    regime = new_regime(probes=len(values))
    before = 0.0
    for i, Dn in enumerate(values, 1):
        regime.observe(i * EVERY, float(i * EVERY), dict(zip((0.3, 0.5, 0.9), Dn, strict=True)))
        assert before <= regime.r <= 1
        assert 0 <= regime.r_now <= 1
        assert regime.r - before <= 5 / len(values) + 1e-12
        assert all(level.made >= 0 and level.to_come >= 0 for level in regime.levels)
        before = regime.r


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.2, 1.2),
    st.floats(0.1, 0.9),
    st.floats(0.2, 3),
    st.integers(24, 120),
)
def test_r_ends_above_nine_tenths_on_any_curve_that_falls(
    top: float, depth: float, rate: float, probes: int
) -> None:
    share = np.arange(1, probes + 1) / probes
    values = top * (1 - depth * (1 - np.exp(-rate * share)) / (1 - math.exp(-rate)))
    fall = min(1.0, values[0]) - values[-1]
    trace = follow(values, new_regime(probes=probes))[0]
    if fall > 0.3:
        assert trace[-1] > 0.9


def test_a_fall_from_above_one_is_noise_that_goes_not_meaning_that_comes() -> None:
    """Before it has learnt anything, a prediction can be worse than no information at all."""
    values = np.linspace(1.6, 1.0, 20)
    trace = follow(values, new_regime(probes=20))[0]
    assert trace[-1] == 0.0


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 1.0), st.floats(0.3, 0.45), st.integers(40, 120))
def test_r_is_the_honest_prior_on_any_steady_curve(top: float, fall: float, probes: int) -> None:
    share = np.arange(1, probes + 1) / probes
    trace = follow(top - fall * share, new_regime(probes=probes))[0]
    assert np.abs(np.array(trace) - share)[6:].max() <= 0.1


@pytest.mark.parametrize("cut", [1, 4, 11, 25, 38])
def test_a_resume_goes_on_to_the_bit(cut: int) -> None:
    values = noisy("rise", 3, 0.01)
    values[40] = math.nan
    whole = new_regime()
    first = new_regime()
    second = new_regime()

    def observed(regime: Regime, i: int) -> tuple[list[Transition], Any, Any, Any]:
        Dn_t = {0.3: float(values[i - 1]), 0.9: 0.5 * float(values[i - 1])}
        return (
            regime.observe(i * EVERY, i * 90.1, Dn_t),
            regime.row(),
            regime.state_dict(),
            regime.levels,
        )

    expected = []
    resumed = []
    for i in range(1, PROBES + 1):
        if i == cut + 1:
            second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        expected.append(observed(whole, i))
        resumed.append(observed(first if i <= cut else second, i))
    assert resumed == expected
    assert any(events for events, *_ in expected[cut:])


def test_a_foreign_state_is_refused() -> None:
    state = new_regime().state_dict()
    with pytest.raises(ValueError, match="taus"):
        new_regime().load_state_dict({k: v for k, v in state.items() if k != "taus"})


# --- the controls ---------------------------------------------------------------------------------


def as_read(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one noise level as `read_replay` gives them."""
    read = []
    for row in rows:
        levels = []
        if "G_t0.50" in row:
            made = row["G_t0.50"]
            to_come = row["R_t0.50"]
            level = {"t": 0.5, "Dn": row["Dn_t0.50"], "made": made, "to_come": to_come}
            levels.append({**level, "scope": made + to_come})
        read.append({"step": row["step"], "r": row["r"], "r_now": row["r_now"], "levels": levels})
    return read


def test_a_replay_gives_the_same_regime_whatever_is_measured() -> None:
    source = new_regime()
    values = noisy("two-stage", 0, 0.01)
    values[20] = math.nan
    rows = follow(values, source)[2]
    control = replay(as_read(rows), steps=STEPS, source_steps=STEPS)
    regime = new_regime(control)
    trace, events, other = follow(CURVES["rise"], regime)
    assert trace == [row["r"] for row in rows]
    assert [row["r_now"] for row in other] == [row["r_now"] for row in rows]
    assert regime.levels == source.levels
    assert other[-1]["source"] == "replay"
    assert other[-1]["G_t0.50"] != rows[-1]["G_t0.50"]  # a row reports what was measured
    assert "frozen" in [to for _, to in events], "the alarm of a control is raised all the same"


def test_a_replay_lies_between_its_probes_and_can_be_stretched() -> None:
    level = {"t": 0.5, "Dn": 0.4, "made": 0.1, "to_come": 0.3, "scope": 0.4}
    rows = [
        {"step": 10, "r": 0.2, "r_now": 0.2, "levels": []},
        {"step": 20, "r": 0.4, "r_now": 0.3, "levels": [level]},
    ]
    same = replay(rows, steps=100, source_steps=100)
    assert [same.values(s)[0] for s in (0, 9, 10, 15, 20, 99)] == pytest.approx(
        [0, 0, 0.2, 0.3, 0.4, 0.4]
    )
    assert same.values(15)[1] == pytest.approx(0.25)
    assert same.levels is not None
    assert [len(same.levels(step)) for step in (5, 15, 20, 90)] == [0, 0, 1, 1]
    assert replay(rows, steps=200, source_steps=100).values(30)[0] == pytest.approx(0.3)


def test_linear() -> None:
    trace, events, rows = follow(CURVES["rise"], new_regime(linear(STEPS)))
    assert trace == pytest.approx(list(SHARE))
    assert [row["r_now"] for row in rows] == trace
    assert rows[-1]["slope"] > 0
    assert [i for i, to in events if to == "refinement"] == [32]


# --- the reading ----------------------------------------------------------------------------------


def rows_of(curve: str, until: int = PROBES, regime: Regime | None = None) -> list[dict[str, Any]]:
    return follow(noisy(curve, 1, 0.005)[:until], regime)[2]


def read(rows: Sequence[dict[str, Any]], steps: int = STEPS) -> str:
    return "\n".join(regime_sentences(rows, steps=steps))


def test_reading_in_the_middle_of_a_steady_run() -> None:
    """Dn 0.9 to 0.3 over 6,000 steps: 1e-4 per step, 0.6 at step 3,000."""
    rows = follow(CURVES["steady"])[2][:30]
    text = read(rows)
    share = rows[-1]["r_now"]
    assert (
        f"{100 * share:.0f} % of the semantic progress that this budget allows has been made"
        in text
    )
    assert (
        "Dn, the distance to the targets, is 0.610 (0: the codec's own error, 1: another clip)"
        in text
    )
    assert "at t = 0.5 half is still to come" in text
    assert "100 more steps would buy about 0.01 of Dn (0.01 to 0.01)" in text
    assert "Dn would go from 0.610 to about 0.310 by the end of the budget, step 6,000" in text
    assert "too short" not in text
    assert "longer than needed" not in text


def test_reading_names_the_noise_level_with_the_most_to_come() -> None:
    values = [{0.3: 0.2, 0.75: 0.9 - 0.5 * share, 0.97: 1 - 0.1 * share} for share in SHARE[:15]]
    assert "at t = 0.75 three quarters is still to come" in read(follow(values)[2])
    assert "at t = 0.75 a quarter is still to come" in read(
        follow([{0.75: 0.9 - 0.5 * share} for share in SHARE[:46]])[2]
    )
    ended = follow([{0.75: 0.9 - 0.5 * share} for share in SHARE])[2]
    assert "at every noise level hardly anything is still to come" in read(ended)
    assert [share_in_words(share) for share in (0, 0.1, 0.33, 0.5, 0.66, 1.0)] == [
        *("hardly anything", "a tenth", "a third"),
        *("half", "two thirds", "nearly everything"),
    ]


def test_reading_says_when_the_budget_is_too_long_or_too_short() -> None:
    fast = follow(0.3 + 0.6 * np.exp(-SHARE / 0.08))[2]
    assert "the budget is longer than needed: 95 % of the progress was made by step 1," in read(
        fast
    )
    steady = read(rows_of("steady"))
    assert "the budget is too short: at its end Dn still falls at" in steady
    assert "so a longer one would buy more" in steady
    for curve in ("plateau", "noise only"):
        text = read(rows_of(curve))
        assert "longer than needed" not in text, curve
        assert "too short" not in text, curve


def test_reading_does_not_sell_noise_as_progress() -> None:
    text = read(follow(noisy("noise only", 2, 0.002))[2])
    assert text.startswith(
        "no semantic progress beyond the noise yet: Dn, the distance to the targets, is 0.9"
    )
    assert "if anything: the slope cannot be told apart from 0" in text or "buy" not in text


def test_reading_explains_that_r_never_falls() -> None:
    rows = rows_of("two-stage")
    held = [{**row, "r": 0.9, "r_now": 0.7} for row in rows]
    assert (
        "r stays at 0.90, which an earlier estimate reached: it never falls, although the present"
        " estimate is 0.70" in read(held)
    )
    assert "never falls" not in read(rows)


def test_reading_of_what_went_wrong() -> None:
    assert regime_sentences([]) == ["no probe has given a value yet"]
    assert regime_sentences([{"step": 10, "Dn": None}]) == ["the only probe gave no value"]
    assert "progress is measured from the 5th probe on" in read(rows_of("steady", 3))
    rows = follow(CURVES["rise"])[2][:40]
    since = next(row["step"] for row in rows if row["frozen"])
    assert f"r has been frozen since step {since:,}: D is rising" in read(rows)
    gaps = [{**row, "Dn": None} if i == 20 else row for i, row in enumerate(rows_of("steady"))]
    assert regime_sentences(gaps)[-1] == "1 of 60 probes gave no value; r did not move there"
    control = rows_of("steady", regime=new_regime(linear(STEPS)))
    assert "not measured here" in read(control)


def test_reading_of_rows_of_an_earlier_version() -> None:
    """Their slope is relative and their r comes from another rule, with a fail-safe."""
    old = {"Dn": 0.5, "slope": -2e-4, "slope_se": 1e-5, "tau": 1.0, "q": 0.3, "stage": "refinement"}
    rows = [{**old, "step": i, "r": 0.7, "failsafe": i > 30} for i in range(1, 40)]
    assert regime_sentences(rows, steps=100) == [
        "Dn, the distance to the targets, is 0.500 (0: the codec's own error, 1: another clip)",
        "r = 0.70 was computed by the rule of an earlier version",
        "from step 31 on r followed the step count (the fail-safe of that version), not the"
        " measurement",
    ]
    bare = [{"step": i, "Dn": 0.5} for i in range(1, 40)]
    assert len(regime_sentences(bare, steps=100)) == 1


def test_reading_is_light() -> None:
    code = (
        "import sys, stagecli.report.regime_sentences; "
        "sys.exit(bool({'torch', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_how_far_a_slope_is_extended() -> None:
    assert [horizon(seen) for seen in (3, 800, 100_000)] == [1, 100, 10_000]
