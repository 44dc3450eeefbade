"""Metrics of sets of embeddings: fixed vectors, naive formulas, equal distributions."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from stagecli.metrics import pairwise
from stagecli.metrics.distance import (
    frechet_difference,
    frechet_distance,
    frechet_infinity,
    frechet_of_moments,
)
from stagecli.metrics.kernel import kernel_audio_distance, kernel_interval
from stagecli.metrics.moments import Moments
from stagecli.metrics.neighbours import memorisation, precision_recall
from stagecli.metrics.pairwise import median_pairwise_distance, nearest_neighbours

SEEDS = st.integers(0, 2**31 - 1)


def vectors() -> tuple[np.ndarray, np.ndarray]:
    state = np.random.RandomState(0)
    return state.randn(500, 16), state.randn(400, 16) * 1.5 + 0.3


# Moments


def accumulated(batches: list[np.ndarray]) -> Moments:
    """Moments of a set that arrives batch by batch."""
    return functools.reduce(Moments.updated, batches, Moments.empty(batches[0].shape[1]))


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    offset=st.floats(-1e6, 1e6),
    seed=SEEDS,
)
def test_moments_do_not_depend_on_batches(sizes: list[int], offset: float, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(sum(sizes), 5)) + offset
    batches = np.split(rows, np.cumsum(sizes)[:-1])
    whole = accumulated(batches)
    assert whole.count == len(rows) and np.allclose(whole.mean_D, rows.mean(0), rtol=1e-12)
    assert np.allclose(whole.covariance(), np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-6)
    halves = accumulated(batches[:1]).merged(accumulated(batches[1:]))
    assert np.allclose(halves.scatter_DD, whole.scatter_DD, rtol=1e-6, atol=1e-6)


def test_moments_of_batches_give_the_same_distance() -> None:
    x, y = vectors()
    part = accumulated(np.split(x[:250], 5))
    assert frechet_of_moments(part.updated(x[250:]), Moments.of(y)).value == pytest.approx(
        frechet_distance(x, y).value, rel=1e-12
    )
    assert Moments.empty(16).merged(part) is part
    assert part.merged(Moments.empty(16)) is part
    with pytest.raises(ValueError, match="different dimensions"):
        part.merged(Moments.empty(3))
    with pytest.raises(ValueError, match="different dimensions"):
        frechet_of_moments(part, Moments.of(np.ones((3, 3))))
    with pytest.raises(ValueError, match="at least two"):
        Moments.of(x[:1]).covariance()


# Frechet distance


def test_frechet_against_scipy_s_matrix_root() -> None:
    """Tolerance 1e-9 relative on well-conditioned covariances."""
    x, y = vectors()
    cov_x = np.cov(x, rowvar=False)
    cov_y = np.cov(y, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, y).value == pytest.approx(6.0759942272, abs=1e-9)


def test_frechet_bias_falls_as_one_over_n() -> None:
    rng = np.random.default_rng(0)
    bias = {
        n: np.mean(
            [
                frechet_distance(rng.normal(size=(n, 8)), rng.normal(size=(n, 8))).value
                for _ in range(40)
            ]
        )
        for n in (100, 400, 1600)
    }
    assert bias[100] / bias[400] == pytest.approx(4, rel=0.2) and bias[400] / bias[
        1600
    ] == pytest.approx(4, rel=0.2)


def test_infinity_removes_the_bias() -> None:
    """The truth is 0 for equal distributions, and 5.44 for the populations of `vectors`."""
    rng = np.random.default_rng(0)
    results = [
        frechet_infinity(rng.normal(size=(600, 8)), rng.normal(size=(600, 8)), seed, over="both")
        for seed in range(12)
    ]
    values, plain = (np.array([getattr(r, name) for r in results]) for name in ("value", "plain"))
    assert (
        abs(values.mean()) < 3 * values.std() / math.sqrt(12) + 0.15 * plain.mean() < plain.mean()
    )
    x, y = vectors()
    result = frechet_infinity(x, y, 0, over="both", draws=20)
    assert abs(result.value - 5.44) < 0.3 < result.plain - 5.44
    assert (
        result.low is not None
        and result.high is not None
        and result.low < result.value < result.high
    )
    assert (
        0 < result.r2 <= 1
        and result.sizes[0] == 64
        and result.sizes[-1] == 400
        and result.slope > 0
    )
    only_y = frechet_infinity(x, y, 0)
    assert only_y == frechet_infinity(x, y, 0) and only_y.low is None
    with pytest.raises(ValueError, match="128 are needed"):
        frechet_infinity(x, y[:127], 0)
    with pytest.raises(ValueError, match="400 clips against 127 are too few"):
        frechet_infinity(x[:127], y, 0, over="both")
    assert frechet_infinity(x[:130], y, 0, over="both").sizes[0] == 197  # 64 clips of x
    with pytest.raises(ValueError, match="3 points"):
        frechet_infinity(x, y, 0, points=2)


# Kernel audio distance


def naive_kad(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    xx, yy, xy = (
        np.exp(-(cdist(a, b) ** 2) / (2 * bandwidth**2)) for a, b in ((x, x), (y, y), (x, y))
    )
    n = len(x)
    m = len(y)
    return 100 * ((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())


def test_kad_vectors() -> None:
    x, y = vectors()
    result = kernel_audio_distance(x, y)
    assert result.value == pytest.approx(6.455608, abs=1e-6) and result.bandwidth == pytest.approx(
        5.482159, abs=1e-6
    )
    wrong = kernel_audio_distance(
        x, y, bandwidth=median_pairwise_distance(y)
    )  # what a known tool computes
    assert wrong.value == pytest.approx(2.918306, abs=1e-6) and wrong.bandwidth == pytest.approx(
        8.2650, abs=1e-4
    )
    halves = kernel_audio_distance(x[:250], x[250:], bandwidth=median_pairwise_distance(x[250:]))
    assert halves.value == pytest.approx(-0.006314, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(2, 40),
    m=st.integers(2, 40),
    dim=st.integers(1, 6),
    block=st.integers(1, 500),
    seed=SEEDS,
)
def test_kad_is_the_naive_formula_in_any_blocks(
    n: int, m: int, dim: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)) + 3
    y = 2 * rng.normal(size=(m, dim)) + 3
    result = kernel_audio_distance(x, y, block=block)
    assert result.bandwidth == pytest.approx(
        float(torch.pdist(torch.from_numpy(x)).median()), rel=1e-9
    )
    assert result.value == pytest.approx(naive_kad(x, y, result.bandwidth), abs=1e-8)
    mirrored = kernel_audio_distance(y, x, bandwidth=result.bandwidth).value
    assert mirrored == pytest.approx(result.value, abs=1e-8)


def test_kad_with_a_kernel_agnostic_reference() -> None:
    """The estimator inside torchmetrics' KID, fed with Gaussian kernels: tolerance 1e-10."""
    from torchmetrics.image.kid import maximum_mean_discrepancy

    x, y = vectors()
    x = x[:400]
    kernels = [
        torch.from_numpy(np.exp(-(cdist(a, b) ** 2) / 50)) for a, b in ((x, x), (x, y), (y, y))
    ]
    ours = kernel_audio_distance(x, y, bandwidth=5.0).value
    assert ours == pytest.approx(100 * float(maximum_mean_discrepancy(*kernels)), abs=1e-10)


def test_kad_is_unbiased() -> None:
    """Equal distributions give about 0, unequal ones about the closed form for Gaussians."""
    rng = np.random.default_rng(0)
    same = np.array(
        [
            kernel_audio_distance(rng.normal(size=(30, 4)), rng.normal(size=(20, 4)), 2.0).value
            for _ in range(200)
        ]
    )
    assert abs(same.mean()) < 3 * same.std() / math.sqrt(200) and 40 < (same < 0).sum() < 160
    apart = np.array(
        [
            kernel_audio_distance(
                rng.normal(size=(30, 4)), rng.normal(size=(20, 4)) + 0.5, 2.0
            ).value
            for _ in range(200)
        ]
    )
    mean_kernel = (4 / 6) ** 2  # E k(a, b) for differences of variance 2: (s^2 / (s^2 + 2))^(D / 2)
    truth = 100 * 2 * mean_kernel * (1 - math.exp(-1 / (2 * 6)))
    assert apart.mean() == pytest.approx(truth, abs=3 * apart.std() / math.sqrt(200))


def test_kad_interval_covers_and_is_hardly_biased() -> None:
    rng = np.random.default_rng(0)
    truth = 100 * 2 * (4 / 6) ** 2 * (1 - math.exp(-4 / 12))
    covered = 0
    for seed in range(60):
        x = rng.normal(size=(80, 4))
        y = rng.normal(size=(80, 4)) + 1.0
        result = kernel_interval(x, y, seed, bandwidth=2.0, draws=100)
        covered += result.low <= truth <= result.high
    assert covered >= 52  # 57 expected
    assert result.value == pytest.approx(naive_kad(x, y, 2.0), abs=1e-9)
    assert abs(result.bias) < 0.3 * (result.high - result.low)
    one = kernel_interval(x, y, 1, bandwidth=2.0)
    blocks = kernel_interval(x, y, 1, bandwidth=2.0, block=777)
    assert (blocks.low, blocks.high, blocks.bias) == pytest.approx(
        (one.low, one.high, one.bias), abs=1e-9
    )
    fixed = kernel_interval(x, y, 1, bandwidth=2.0, resample="generated")
    assert fixed.high - fixed.low < result.high - result.low


def test_sets_that_cannot_be_scored_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(10, 4))
    for metric in (kernel_audio_distance, precision_recall, lambda a, b: kernel_interval(a, b, 0)):
        for bad, message in (
            (x[:1], "at least"),
            (x[:, :3], "different dim"),
            (x * np.nan, "not finite numbers"),
            (x[0], "N, D"),
        ):
            with pytest.raises(ValueError, match=message):
                metric(x, bad)
    with pytest.raises(ValueError, match="copies"):
        kernel_audio_distance(np.ones((5, 2)), x[:, :2])
    with pytest.raises(ValueError, match="positive"):
        kernel_audio_distance(x, x, bandwidth=-1.0)


# Distances in blocks


@pytest.mark.parametrize("bins", [2**16, 8])
def test_median_by_narrowing_is_exact(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(pairwise, "VALUES_SORTED", 100)
    monkeypatch.setattr(pairwise, "HISTOGRAM_BINS", bins)
    for n in (40, 41, 90):
        x = rng.normal(size=(n, 3))
        assert median_pairwise_distance(x, block=333) == pytest.approx(
            np.sort(pdist(x))[(n * (n - 1) // 2 - 1) // 2]
        )
    copies = np.repeat(
        rng.normal(size=(3, 3)), 30, axis=0
    )  # more values at one place than can be collected
    assert median_pairwise_distance(copies, block=333) == pytest.approx(
        np.median(pdist(copies)), abs=1e-6
    )
    assert median_pairwise_distance(np.ones((50, 2))) == 0


def test_nearest_neighbours_put_copies_at_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 7)) + 1e4
    y = np.concatenate([rng.normal(size=(200, 7)) + 1e4, x[17:18]])
    distance, index = nearest_neighbours(torch.from_numpy(x), torch.from_numpy(y), block=999)
    assert float(distance[17]) == 0 and int(index[17]) == 200
    assert np.allclose(distance, cdist(x, y).min(1), rtol=1e-9)


# Precision, recall, density, coverage


def naive_manifold(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    radius_x, radius_y = (np.sort(cdist(z, z), axis=1)[:, k] for z in (x, y))
    across = cdist(x, y)
    inside = across < radius_x[:, None]
    recall = (across < radius_y).any(1).mean()
    return inside.any(0).mean(), recall, inside.sum(0).mean() / k, inside.any(1).mean()


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(6, 40),
    m=st.integers(6, 40),
    k=st.integers(1, 5),
    shift=st.floats(0, 3),
    seed=SEEDS,
)
def test_manifold_metrics_are_the_naive_ones(
    n: int, m: int, k: int, shift: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = rng.normal(size=(m, 3)) + shift
    result = precision_recall(x, y, k, block=100)
    naive = naive_manifold(x, y, k)
    assert (result.precision, result.recall, result.density, result.coverage) == pytest.approx(
        naive
    )
    swapped = precision_recall(y, x, k)
    assert (swapped.precision, swapped.recall) == pytest.approx((result.recall, result.precision))


def test_manifold_bounds() -> None:
    x = np.random.default_rng(0).normal(size=(100, 4))
    same = precision_recall(x, x)
    far = precision_recall(x, x + 100)
    assert (same.precision, same.recall, same.coverage) == (
        1,
        1,
        1,
    ) and same.density == pytest.approx(1, abs=0.02)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    narrow = precision_recall(x, 0.1 * x[:50] + x.mean(0))
    assert narrow.precision == 1 > 0.5 > narrow.recall and narrow.density > 1
    with pytest.raises(ValueError, match="k must"):
        precision_recall(x, x, 0)
    with pytest.raises(ValueError, match="at least 6 clips"):
        precision_recall(x, x[:5])


# Memorisation


def test_copies_are_found_and_new_samples_are_not() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(500, 6))
    test = rng.normal(size=(400, 6))
    made = rng.normal(size=(300, 6))
    honest = memorisation(made, train, test)
    assert honest.nearer.low <= 0.01 <= honest.nearer.high and honest.copies == 0
    assert not honest.coarse and not honest.leaked
    assert honest.samples[0.5] == pytest.approx(honest.real[0.5], rel=0.1)
    assert honest.threshold == pytest.approx(float(np.quantile(cdist(test, train).min(1), 0.01)))
    copying = made.copy()
    copying[40:70] = train[100:130] + 1e-3 * rng.normal(size=(30, 6))
    copying[7] = train[3]
    caught = memorisation(copying, train, test, most_pairs=31)
    assert caught.copies == 1 and caught.nearer.value >= 31 / 300 and caught.nearer.low > 0.05
    assert (caught.pairs[0].sample, caught.pairs[0].training, caught.pairs[0].distance) == (7, 3, 0)
    assert {(p.sample, p.training) for p in caught.pairs[1:]} == {
        (40 + i, 100 + i) for i in range(30)
    }
    distances = [p.distance for p in caught.pairs]
    assert distances == sorted(distances) and all(p.rank == 0 for p in caught.pairs)


def test_memorisation_by_direction_and_its_warnings() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(50, 6))
    test = rng.normal(size=(30, 6))
    louder = memorisation(3 * train[:5], train, test, cosine=True)
    assert louder.samples[0.95] < 1e-9 and louder.nearer.value == 1 and louder.coarse
    assert memorisation(3 * train[:5], train, test).copies == 0
    assert memorisation(train[:5], train, train[:9]).leaked
    assert len(memorisation(train[:1], train, test).pairs) == 1
    for made, message in (
        (train[:, :2], "different dim"),
        (0 * train, "no direction"),
        (train[:0], "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            memorisation(made, train, test, cosine=True)


@pytest.mark.parametrize("few", [5, 12, 13, 40])
def test_the_distance_by_clips_is_that_by_moments(few: int) -> None:
    """Differences use M x M matrices for fewer clips than dimensions, distances always D x D."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12))
    a = rng.normal(size=(few, 12)) + 0.3
    b = 2 * rng.normal(size=(few, 12)) - 1
    distances = [frechet_distance(x, y).value for y in (a, b)]
    difference = frechet_difference(x, a, b, 0, draws=2).value
    assert difference == pytest.approx(distances[1] - distances[0], abs=1e-6 * min(distances))


def test_a_singular_reference_has_the_distance_of_the_matrix_root() -> None:
    """A Cholesky factor does not exist; of scipy's complex root the real part counts."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 12))
    y = rng.normal(size=(40, 12)) + 0.3
    cov_x = np.cov(x, rowvar=False)
    cov_y = np.cov(y, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    plain = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    assert frechet_distance(x, y).value == pytest.approx(plain, rel=1e-5)
    assert frechet_distance(y, x).value == pytest.approx(plain, rel=1e-5)
    copies = np.repeat(rng.normal(size=(1, 12)), 5, axis=0)
    assert frechet_distance(copies, copies).value == pytest.approx(0, abs=1e-9)
