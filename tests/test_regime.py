"""The regime variable on curves whose truth is known, with noise, outliers and gaps.

Probes count from 1; a run has 200 of them, one every 100 steps, so it ends at step 20,000. The
fail-safe is off except where it is tested: it would hide the measurement in the last 80 probes.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, theilslopes

from stagecli.errors import StageError
from stagecli.metrics.theil_sen import kendall_z, theil_sen
from stagecli.report.regime_sentences import horizon, regime_sentences
from stagecli.stage.regime_controls import linear, replay
from stagecli.stage.regime_slope import fit_line
from stagecli.stage.regime_variable import Regime, RegimeSettings

PROBES = 200
EVERY = 100
SEEDS = 50
SHARE = np.arange(1, PROBES + 1) / PROBES
CURVES = {  # Dn without noise; `share` of the budget on the axis
    "steady": 0.9 * np.exp(-1.0 * SHARE),
    "slow": 0.9 * np.exp(-0.4 * SHARE),
    "fast": 0.9 * np.exp(-3.0 * SHARE),
    "sound": 0.95 * np.exp(-0.8 * SHARE)
    + 0.9 * np.exp(-SHARE / 0.03),  # from noise (Dn 1.7) to sound, then steady
    "decay": 0.3 + 0.9 * np.exp(-SHARE / 0.12),
    "power": 0.9 * (SHARE / 0.05 + 1) ** -0.6,
    "knee": np.exp(
        -0.05 - np.where(SHARE < 0.35, SHARE / 0.35, 1 + 0.05 * (SHARE - 0.35))
    ),  # at probe 70
    "rise": np.where(
        SHARE < 0.3, 0.9 * np.exp(-3 * SHARE), 0.9 * np.exp(-0.9 + 0.8 * (SHARE - 0.3))
    ),  # from 60
}


def noisy(curve: str, seed: int, sd: float, rho: float, outliers: float = 0.0) -> np.ndarray:
    """The curve times AR(1) noise of relative size sd; some probes are outliers by 5 to 30 %."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(PROBES + 50)
    noise = np.zeros(PROBES + 50)
    for i in range(1, PROBES + 50):
        noise[i] = rho * noise[i - 1] + math.sqrt(1 - rho * rho) * white[i]
    hit = (
        (rng.random(PROBES) < outliers)
        * rng.choice([-1, 1], PROBES)
        * rng.uniform(0.05, 0.3, PROBES)
    )
    return CURVES[curve] * (np.exp(sd * noise[50:]) + hit)


def follow(
    values: Any, regime: Regime | None = None
) -> tuple[list[float], list[tuple[int, str]], list[dict[str, Any]]]:
    """r after every probe, (probe, to) of every event, and the rows."""
    regime = regime or Regime(RegimeSettings(steps=PROBES * EVERY, failsafe=None))
    trace = []
    events = []
    rows = []
    for i, value in enumerate(values, 1):
        events += [
            (i, event.after) for event in regime.observe(i * EVERY, float(i * EVERY), float(value))
        ]
        trace.append(regime.r)
        rows.append({"step": i * EVERY, **regime.row()})
    return trace, events, rows


@cache
def many(
    curve: str, sd: float, rho: float, outliers: float = 0.0
) -> list[tuple[list[float], list[tuple[int, str]]]]:
    seeds = range(SEEDS if sd else 1)
    return [follow(noisy(curve, seed, sd, rho, outliers))[:2] for seed in seeds]


def passed(trace: list[float], level: float = 0.5) -> float:
    """The probe at which r reached `level`."""
    return next((i for i, r in enumerate(trace, 1) if r >= level), math.inf)


# --- steady progress ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "sd", "rho", "outliers", "middle", "highest"),
    [
        ("steady", 0.01, 0.5, 0.03, 0.05, 0.18),
        ("steady", 0.01, 0.8, 0.0, 0.07, 0.22),
        ("slow", 0.01, 0.5, 0.0, 0.07, 0.25),
        ("sound", 0.01, 0.5, 0.0, 0.07, 0.25),
    ],
)
def test_steady_progress_leaves_r_near_0(
    curve: str, sd: float, rho: float, outliers: float, middle: float, highest: float
) -> None:
    """Median and worst of 50 seeds at the end: noise never ratchets r up to a decision (0.5)."""
    ends = sorted(trace[-1] for trace, _ in many(curve, sd, rho, outliers))
    assert ends[SEEDS // 2] <= middle
    assert ends[-1] <= highest


@pytest.mark.parametrize("curve", ["steady", "slow", "fast", "sound"])
def test_steady_progress_without_noise(curve: str) -> None:
    assert follow(CURVES[curve])[0][-1] <= 0.11


# --- a true change --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sd", "rho", "outliers"),
    [(0.0, 0.0, 0.0), (0.01, 0.5, 0.03), (0.01, 0.8, 0.0)],
)
def test_r_passes_the_middle_35_to_60_probes_after_a_knee(
    sd: float, rho: float, outliers: float
) -> None:
    """34 of them are the rate limit. r is near 0 before the knee, and at least 0.75 long after."""
    for trace, events in many("knee", sd, rho, outliers):
        assert trace[69] <= 0.2
        assert 105 <= passed(trace) <= 130
        assert trace[-1] >= 0.75
        # The third consecutive probe decides.
        assert next(i for i, to in events if to == "refinement") == passed(trace) + 2


@pytest.mark.slow
@pytest.mark.parametrize(("sd", "rho"), [(0.003, 0.5), (0.01, 0.0)])
def test_less_noise_is_no_worse(sd: float, rho: float) -> None:
    assert max(trace[-1] for trace, _ in many("steady", sd, rho)) <= 0.12
    assert max(trace[-1] for trace, _ in many("fast", sd, rho)) <= 0.18
    assert all(105 <= passed(trace) <= 125 for trace, _ in many("knee", sd, rho))
    assert max(trace[-1] for trace, _ in many("rise", sd, rho)) <= 0.12


def test_exponential_and_power_law() -> None:
    """The exponential (time constant: probe 24) is over; a power law has no change to find."""
    for trace, _ in many("decay", 0.01, 0.5):
        assert 75 <= passed(trace) <= 115
        assert trace[-1] >= 0.85
    ends = [trace[-1] for trace, _ in many("power", 0.01, 0.5)]
    assert min(ends) >= 0.45 and max(ends) <= 0.72


def test_false_alarms_are_rare() -> None:
    steady = many("steady", 0.01, 0.5, 0.03) + many("steady", 0.01, 0.8)
    assert sum(any(to == "frozen" for _, to in events) for _, events in steady) == 0
    flat = [any(to == "frozen" for _, to in events) for _, events in many("knee", 0.01, 0.8)]
    assert sum(flat) <= 3  # 130 probes of a curve that hardly falls: the hardest case


@pytest.mark.parametrize(
    ("sd", "rho", "caught", "highest"), [(0.0, 0.0, 1, 0.01), (0.01, 0.5, 48, 0.3)]
)
def test_a_rise_raises_an_alarm_and_freezes_r(
    sd: float, rho: float, caught: int, highest: float
) -> None:
    runs = many("rise", sd, rho)
    firsts = [next((i for i, to in events if to == "frozen"), None) for _, events in runs]
    caught_at = [i for i in firsts if i is not None]
    assert len(caught_at) >= caught
    assert min(caught_at) > 60 and sorted(caught_at)[len(caught_at) // 2] <= 90
    assert max(trace[-1] for trace, _ in runs) <= highest


def test_thaw() -> None:
    """Dn rises from probe 60 to 100, then falls: one alarm, one thaw, no change of r in between."""
    values = np.concatenate([0.9 * np.exp(-np.arange(60) / 60), 0.35 * np.exp(np.arange(40) / 80)])
    values = np.concatenate([values, values[-1] * np.exp(-np.arange(60) / 60)])
    trace, events, rows = follow(values)
    frozen = [i for i, to in events if to == "frozen"]
    thawed = [i for i, to in events if to == "acquisition" and frozen and i > frozen[0]]
    assert len(frozen) == len(thawed) == 1
    assert 60 < frozen[0] < 85 and 100 < thawed[0] < 135
    assert len(set(trace[frozen[0] - 1 : thawed[0] - 1])) == 1
    assert rows[frozen[0] - 1]["frozen"] and not rows[thawed[0] - 1]["frozen"]


# --- clock, fail-safe, gaps -----------------------------------------------------------------------


def test_the_fall_from_noise_to_sound_does_not_start_the_clock() -> None:
    """Dn falls from 2.3 to 1.05 and stays there: nothing was learnt, so nothing is refined."""
    trace, events, rows = follow(1.05 + 1.25 * np.exp(-SHARE / 0.05))
    assert trace[-1] == 0 and events == [] and rows[-1]["stage"] == "waiting"
    late = np.where(SHARE < 0.4, 1.3, 0.85 * np.exp(-(SHARE - 0.4)))
    trace, events, rows = follow(late)
    assert events[0] == (82, "acquisition") and rows[-1]["clock_step"] == 8200
    assert trace[-1] < 0.1
    assert (
        rows[92]["slope"] is not None and rows[91]["slope"] is None
    )  # 12 probes from the clock's start


def test_the_clock_waits_for_its_share_of_the_budget() -> None:
    assert follow(CURVES["steady"])[1][0] == (10, "acquisition")


def test_one_low_probe_does_not_start_the_clock() -> None:
    values = np.full(PROBES, 1.2)
    values[[30, 40, 41]] = 0.5
    assert follow(values)[1] == []


def test_failsafe_lifts_r_and_says_so_once() -> None:
    regime = Regime(RegimeSettings(steps=PROBES * EVERY))
    trace, events, rows = follow(CURVES["steady"], regime)
    assert trace[119] < 0.02 and trace[149] == pytest.approx(0.5) and trace[179:] == [1.0] * 21
    assert [i for i, to in events if to == "fail-safe"] == [121]
    assert not rows[119]["failsafe"] and all(row["failsafe"] for row in rows[120:])
    assert [i for i, to in events if to == "refinement"] == [152]  # the third probe in a row
    done = follow(CURVES["decay"], Regime(RegimeSettings(steps=PROBES * EVERY)))
    assert not any(row["failsafe"] for row in done[2]), "r measured 1 needs no fail-safe"


def test_failsafe_acts_without_any_probe_that_has_a_number() -> None:
    trace, events, rows = follow([math.nan] * PROBES, Regime(RegimeSettings(steps=PROBES * EVERY)))
    assert trace[119] == 0 and trace[-1] == 1 and rows[-1]["Dn"] is None
    assert (121, "fail-safe") in events and (121, "waiting") in events


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_probe_without_a_number_freezes_r_for_that_probe(value: float) -> None:
    values = CURVES["knee"].copy()
    values[99] = value
    regime = Regime(RegimeSettings(steps=PROBES * EVERY, failsafe=None))
    trace, events, _ = follow(values, regime)
    assert trace[99] == trace[98] < trace[100]
    assert [to for i, to in events if i == 100] == ["acquisition"]
    assert trace[-1] >= 0.85
    json.dumps(regime.state_dict(), allow_nan=False)


def test_optimiser_time_takes_the_learning_rate_out() -> None:
    """L falls with tau, which the cosine slows down: a slope per step would see progress end."""
    rate = 0.5 * (1 + np.cos(np.pi * SHARE))
    tau = np.cumsum(rate) * EVERY
    values = 0.9 * np.exp(-tau / tau[-1])
    ends = []
    for clock in (tau, SHARE * PROBES * EVERY):
        regime = Regime(RegimeSettings(steps=PROBES * EVERY, failsafe=None))
        for i in range(PROBES):
            regime.observe((i + 1) * EVERY, float(clock[i]), float(values[i]))
        ends.append(regime.r)
    assert ends[0] < 0.05 and ends[1] > 0.7


def test_constant_time_or_discrepancy_is_no_error() -> None:
    regime = Regime(RegimeSettings(steps=100))
    for step in range(1, 41):
        regime.observe(step, 0.0, 0.5)
    assert regime.progress.beta == 0 and json.dumps(regime.row(), allow_nan=False)
    again = Regime(RegimeSettings(steps=100))
    again.load_state_dict(json.loads(json.dumps(regime.state_dict(), allow_nan=False)))
    assert again.progress.q_se == regime.progress.q_se
    assert (
        follow(np.zeros(PROBES))[0][-1] == 1.0
    )  # at the ceiling from the start: nothing is left to learn


def test_backwards_is_refused() -> None:
    regime = Regime(RegimeSettings(steps=100))
    regime.observe(10, 10.0, 0.5)
    for step, tau in [(10, 11.0), (20, 9.0), (20, math.nan)]:
        with pytest.raises(ValueError, match="after step 10"):
            regime.observe(step, tau, 0.5)


def test_reached_needs_three_probes() -> None:
    regime = Regime(RegimeSettings(steps=100), source="linear", schedule=linear(100))
    seen = []
    for step in range(10, 101, 10):
        regime.observe(step, float(step), 0.5)
        seen.append(regime.reached(0.5))
    assert seen == [False] * 6 + [True] * 4


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
        y = np.log(noisy("decay", seed, 0.03, 0.5, 0.05)[40:60])
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
        y = [float(v) for v in np.log(noisy("steady", seed, 0.01, rho)[100:120])]
        line = fit_line(x, y)
        hits += abs(line.slope + 1 / PROBES) <= 2 * line.se
    assert low <= hits / 200 <= high


def test_rise_has_a_small_p_and_a_fall_a_large_one() -> None:
    x = [float(i) for i in range(20)]
    assert fit_line(x, x).p_rise < 1e-6
    assert fit_line(x, [-v for v in x]).p_rise > 1 - 1e-6
    assert fit_line(x, [1.0] * 20).p_rise == pytest.approx(0.5)


# --- what always holds ----------------------------------------------------------------------------

ANYTHING = st.one_of(st.floats(-1, 3), st.just(math.nan), st.just(math.inf))


@settings(max_examples=60, deadline=None)
@given(st.lists(ANYTHING, min_size=1, max_size=90), st.booleans())
def test_r_is_monotone_bounded_and_slow(values: list[float], safe: bool) -> None:
    budget = len(values) * EVERY
    regime = Regime(RegimeSettings(steps=budget, failsafe=(0.6, 0.3) if safe else None))
    before = 0.0
    for i, value in enumerate(values, 1):
        regime.observe(i * EVERY, float(i * EVERY), value)
        assert before <= regime.r <= 1
        assert regime.r - before <= 0.015 + 1e-12 or regime.failsafe.lifting
        before = regime.r
    if safe:
        assert regime.r == 1


@pytest.mark.parametrize("cut", [1, 11, 25, 84, 130])
def test_a_resume_goes_on_to_the_bit(cut: int) -> None:
    values = noisy("rise", 3, 0.01, 0.5, 0.03)
    values[40] = math.nan
    make = lambda: Regime(RegimeSettings(steps=PROBES * EVERY))  # noqa: E731
    whole = make()
    first = make()
    second = make()
    expected = []
    resumed = []
    for i, value in enumerate(values, 1):
        if i == cut + 1:
            second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        expected.append(
            (whole.observe(i * EVERY, i * 90.1, float(value)), whole.row(), whole.state_dict())
        )
        part = first if i <= cut else second
        resumed.append(
            (part.observe(i * EVERY, i * 90.1, float(value)), part.row(), part.state_dict())
        )
    assert resumed == expected
    assert any(events for events, _, _ in expected[cut:])


def test_a_foreign_state_is_refused() -> None:
    state = Regime(RegimeSettings(steps=10)).state_dict()
    with pytest.raises(ValueError, match="clock"):
        Regime(RegimeSettings(steps=10)).load_state_dict(
            {k: v for k, v in state.items() if k != "clock"}
        )


# --- the controls ---------------------------------------------------------------------------------


def test_a_replay_gives_the_same_r_whatever_is_measured() -> None:
    rows = follow(noisy("knee", 0, 0.01, 0.5))[2]
    schedule = replay(rows[::-1], steps=PROBES * EVERY)
    regime = Regime(RegimeSettings(steps=PROBES * EVERY), source="replay", schedule=schedule)
    trace, events, other = follow(CURVES["rise"], regime)
    assert trace == [row["r"] for row in rows]
    assert not any(row["failsafe"] for row in other) and other[-1]["source"] == "replay"
    assert "frozen" in [to for _, to in events], "the alarm of a control is raised all the same"
    assert [i for i, to in events if to == "refinement"] == [
        next(i for i, row in enumerate(rows, 1) if row["stage"] == "refinement")
    ]


def test_a_replay_lies_between_its_probes_and_can_be_stretched() -> None:
    rows = [{"step": 10, "r": 0.2}, {"step": 20, "r": 0.4}, {"step": 15, "r": None}, {"step": 30}]
    assert [replay(rows, steps=100)(s) for s in (0, 9, 10, 15, 20, 99)] == pytest.approx(
        [0, 0, 0.2, 0.3, 0.4, 0.4]
    )
    assert replay(rows, steps=200, source_steps=100)(30) == pytest.approx(0.3)
    with pytest.raises(StageError, match="no probe"):
        replay([{"step": 1}], steps=100)


def test_linear() -> None:
    trace, events, rows = follow(
        CURVES["rise"],
        Regime(RegimeSettings(steps=20_000), source="linear", schedule=linear(20_000)),
    )
    assert trace == pytest.approx(list(SHARE))
    assert rows[-1]["slope"] > 0 and [i for i, to in events if to == "refinement"] == [102]


def test_a_source_needs_its_schedule() -> None:
    for source, schedule in [("replay", None), ("measured", linear(10)), ("guess", linear(10))]:
        with pytest.raises(ValueError, match="source"):
            Regime(RegimeSettings(steps=10), source=source, schedule=schedule)


# --- the reading ----------------------------------------------------------------------------------


def rows_of(curve: str, until: int = PROBES, regime: Regime | None = None) -> list[dict[str, Any]]:
    return follow(noisy(curve, 1, 0.005, 0.3)[:until], regime)[2]


def test_reading_of_a_run_in_refinement() -> None:
    rows = rows_of("decay", 150)
    sentences = regime_sentences(rows, steps=PROBES * EVERY)
    begun = next(row["step"] for row in rows if row["stage"] == "refinement")
    assert sentences[0].startswith(f"semantic progress is at {100 * rows[-1]['q']:.0f} % (± ")
    assert f"of its average since step {rows[-1]['clock_step']:,}" in sentences[0]
    assert sentences[1] == f"refinement since step {begun:,} (r = {rows[-1]['r']:.2f})"
    assert "1,000 more steps buy" in sentences[2]


def test_reading_extends_the_slope() -> None:
    """L falls by 1 in 20,000 steps without noise, so 1,000 more take 4.9 % of Dn + 0.01."""
    rows = follow(0.9 * np.exp(-SHARE) - 0.01)[2][:100]
    sentences = regime_sentences(rows)
    gain = (rows[-3]["Dn"] + 0.01) * -math.expm1(-0.05)
    assert f"at this slope 1,000 more steps buy about {gain:.2g} of Dn" in sentences[2]
    assert "semantic progress is at 100 % (± 0)" in sentences[0]
    assert sentences[1].startswith("semantic acquisition (r = 0.0")
    assert horizon(800) == 100 and horizon(100_000) == 10_000 and horizon(3) == 1


def test_reading_does_not_sell_noise_as_progress() -> None:
    rows = follow(noisy("knee", 2, 0.02, 0.5))[2]
    gain = next(line for line in regime_sentences(rows) if "more steps buy" in line)
    assert "cannot be told apart from 0" in gain


def test_reading_of_what_went_wrong() -> None:
    assert regime_sentences([]) == ["no probe has given a value yet"]
    assert regime_sentences([{"step": 10, "Dn": None}]) == ["the only probe gave no value"]
    waiting = regime_sentences(follow(np.full(30, 1.4))[2])
    assert "Dn is 1.400" in waiting[0] and "the clock has not started" in waiting[0]
    rows = rows_of("rise", 110)
    sentences = regime_sentences(rows)
    since = next(row["step"] for row in rows if row["frozen"])
    assert "negative" in sentences[0] and any(
        line.startswith(f"r has been frozen since step {since:,}: D is rising")
        for line in sentences
    )
    lifted = regime_sentences(rows_of("steady", regime=Regime(RegimeSettings(steps=20_000))))
    assert any("r was lifted by the fail-safe" in line for line in lifted)
    assert any(
        line.startswith("refinement since step 15,200") and "not by measurement" in line
        for line in lifted
    )
    gaps = regime_sentences(
        [{**row, "Dn": None} if i == 50 else row for i, row in enumerate(rows_of("steady"))]
    )
    assert gaps[-1] == "1 of 200 probes gave no value; r did not move there"
    control = rows_of(
        "steady",
        regime=Regime(RegimeSettings(steps=20_000), source="linear", schedule=linear(20_000)),
    )
    assert "not measured here" in " ".join(regime_sentences(control))


def test_reading_says_that_super_resolution_saturates_early() -> None:
    sentences = regime_sentences(follow(0.4 + 0.45 * np.exp(-SHARE / 0.03))[2])
    assert any(line.startswith("D saturated early: 90 % of its fall") for line in sentences)
    assert not any("saturated" in line for line in regime_sentences(rows_of("steady")))


def test_reading_takes_rows_of_another_version() -> None:
    """A row with nothing but step and Dn still gives what it can."""
    rows = [{"step": i, "Dn": 0.5} for i in range(1, 40)]
    assert len(regime_sentences(rows, steps=100)) == 1


def test_reading_is_light() -> None:
    code = (
        "import sys, stagecli.report.regime_sentences; "
        "sys.exit(bool({'torch', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
