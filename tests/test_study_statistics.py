"""Statistics over seeds: against hand examples, exact formulas and simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stagecli.metrics.bootstrap import bootstrap_interval
from stagecli.study.statistics import (
    arrival,
    holm,
    paired_test,
    sign_flip_p,
    smallest_group_effect,
    smallest_paired_effect,
    t_interval,
)


def share_covered(n: int, interval: str) -> float:
    """Share of simulated studies of n seeds whose interval holds the true difference, 0.3."""
    differences = np.random.default_rng(n).normal(0.3, 1.0, size=(1500, n))
    hits = 0
    for seed, row in enumerate(differences):
        low, high = t_interval(row) if interval == "t" else bootstrap_interval(row, seed, draws=300)
        hits += low <= 0.3 <= high
    return hits / len(differences)


@pytest.mark.parametrize(
    ("n", "interval", "expected"),
    [
        (3, "t", 0.95),
        (5, "t", 0.95),
        # As the note under the tables says: too narrow.
        (3, "bootstrap", 0.75),
        (5, "bootstrap", 0.83),
    ],
)
def test_intervals_cover_the_truth_as_often_as_the_report_says(
    n: int, interval: str, expected: float
) -> None:
    assert share_covered(n, interval) == pytest.approx(expected, abs=0.025)


def test_a_paired_test_is_that_of_the_textbook() -> None:
    differences = [0.4, -0.1, 0.35, 0.2]
    test = paired_test(differences)
    assert test.p_t == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)
    low, high = stats.t.interval(
        0.95, 3, loc=np.mean(differences), scale=stats.sem(np.array(differences))
    )
    assert test.t == pytest.approx((low, high))
    assert test.bootstrap is not None
    assert low < test.bootstrap[0] < test.bootstrap[1] < high
    assert (test.n, test.mean) == (4, pytest.approx(0.2125))
    # The sum is 0.85. Of the 16 choices of signs, only turning -0.1 gives more, 1.05; each of the
    # two has an opposite.
    assert test.p_flip == 4 / 16
    assert test.p_flip_least == 2 / 16


def test_of_one_seed_there_is_a_difference_and_nothing_else() -> None:
    test = paired_test([0.5])
    assert (test.n, test.mean) == (1, 0.5)
    assert test.sd is test.t is test.bootstrap is test.p_t is test.p_flip is None


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0.0, 0.0], 1.0), ([0.5, 0.5, 0.5], 0.25)])
def test_equal_differences_have_the_p_of_their_signs(differences: list[float], p: float) -> None:
    test = paired_test(differences)
    assert test.sd == 0
    assert test.p_t == test.p_flip == p
    assert test.smallest_effect == 0


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_statistic_is_made_of_no_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        paired_test(values)


def test_signs_have_a_floor_and_many_are_drawn() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 32
    many = np.random.default_rng(0).normal(0.6, 1.0, size=20)
    assert sign_flip_p(many) == pytest.approx(stats.ttest_1samp(many, 0.0).pvalue, abs=0.01)


def test_holm_against_a_hand_example() -> None:
    # Sorted: 4 x 0.005 = 0.02, 3 x 0.01 = 0.03, 2 x 0.03 = 0.06, 1 x 0.04 -> not below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_smallest_effect_is_detected_in_four_of_five_studies(n: int) -> None:
    effect = smallest_paired_effect(2.0, n)
    shift = effect / 2.0 * math.sqrt(n)
    critical = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_the_smallest_effect_of_two_groups_by_simulation() -> None:
    effect = smallest_group_effect(1.0, 5)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000, 5))
    p = stats.ttest_ind(a + effect, b, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.02)


# -- steps to a score ------------------------------------------------------------------------------

STEPS = [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("values", "target", "lower", "log", "step"),
    [
        ([8, 4, 2, 1], 4, True, False, 200),  # exactly a point
        ([8, 4, 2, 1], 3, True, False, 250),  # halfway
        ([8, 4, 2, 1], math.sqrt(8), True, True, 250),  # halfway in the logarithm
        ([0.1, 0.2, 0.6, 0.7], 0.4, False, False, 250),  # higher is better
        ([8, 4, 6, 2], 3, True, False, 350),  # from the best so far, not from the last
        ([8, 8, 8, 4], 8, True, False, 100),  # by the first
        ([-1, -2, -3, -4], -3.5, True, False, 350),
    ],
)
def test_steps_to_a_score_are_exact(
    values: list[float], target: float, lower: bool, log: bool, step: float
) -> None:
    result = arrival(STEPS, values, target, lower=lower, log=log)
    assert result is not None
    assert result.step == pytest.approx(step)
    assert result.by_first == (step == 100)


def test_a_score_may_never_be_reached() -> None:
    assert arrival(STEPS, [8, 4, 2, 1.01], 1, lower=True, log=True) is None
    assert arrival([], [], 1, lower=True, log=False) is None
