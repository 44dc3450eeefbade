"""Class posteriors, CLAP cosines, shares and paired differences against torch and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.metrics.bootstrap import bootstrap_interval, paired_difference, shifted_interval
from stagecli.metrics.classes import (
    clap_scores,
    class_kl,
    inception_score,
    posteriors,
    prompt_accuracy,
    wilson_interval,
)
from stagecli.metrics.registry import METRICS

SEEDS = st.integers(0, 2**31 - 1)


def drawn(n: int, classes: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    return posteriors(scale * np.random.default_rng(seed).normal(size=(n, classes)))


# KL


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), classes=st.integers(2, 30), seed=SEEDS)
def test_kl_is_scipy_s_in_both_directions(n: int, classes: int, seed: int) -> None:
    p = drawn(n, classes, seed)
    q = drawn(n, classes, seed + 1)
    result = class_kl(p, q, epsilon=0)
    assert result.reference_generated == pytest.approx(
        scipy.special.rel_entr(p, q).sum(1).mean().item(), rel=1e-9
    )
    assert result.generated_reference == pytest.approx(
        scipy.special.rel_entr(q, p).sum(1).mean().item(), rel=1e-9
    )
    assert result.reference_generated >= 0 and result.per_pair.shape == (n,)
    assert class_kl(p, p, epsilon=0).reference_generated == pytest.approx(0, abs=1e-12)


def test_kl_is_audioldm_eval_s_with_its_epsilon() -> None:
    """Its formula: kl_div of log(softmax(generated) + 1e-6) and softmax(reference), summed."""
    rng = np.random.default_rng(0)
    reference, generated = (torch.from_numpy(20 * rng.normal(size=(50, 10))) for _ in range(2))
    expected = (
        torch.nn.functional.kl_div(
            (generated.softmax(1) + 1e-6).log(), reference.softmax(1), reduction="sum"
        )
        / 50
    )
    result = class_kl(posteriors(reference), posteriors(generated))
    assert (
        result.reference_generated == pytest.approx(float(expected), rel=1e-12)
        and result.epsilon == 1e-6
    )
    assert result.reference_generated != pytest.approx(result.generated_reference, rel=1e-3)


def test_kl_of_certain_posteriors() -> None:
    one = torch.eye(3)[:1]
    other = torch.eye(3)[1:2]
    assert class_kl(one, other, epsilon=0).reference_generated == math.inf
    assert class_kl(one, other).reference_generated == pytest.approx(-math.log(1e-6))
    assert class_kl(one, one).reference_generated == pytest.approx(0, abs=1e-5)
    for p, q, message in (
        (one, 2 * other, "distributions"),
        (one, torch.tensor([[1.5, -0.5, 0]]), "distributions"),
        (one, torch.eye(3), "equal shapes"),
        (one / 0, other, "not finite numbers"),
        (one[0], other, "N, D"),
    ):
        with pytest.raises(ValueError, match=message):
            class_kl(p, q)


# Inception score


@settings(max_examples=15, deadline=None)
@given(n=st.integers(10, 60), classes=st.integers(2, 20), splits=st.integers(1, 5), seed=SEEDS)
def test_inception_score_lies_between_its_bounds(
    n: int, classes: int, splits: int, seed: int
) -> None:
    result = inception_score(drawn(n, classes, seed), seed, splits)
    assert 1 - 1e-9 <= result.value <= min(classes, math.ceil(n / splits)) + 1e-9
    alike = drawn(1, classes, seed).expand(n, classes)
    assert inception_score(alike, seed, splits).value == pytest.approx(1, abs=1e-9)


def test_inception_score_is_the_formula() -> None:
    certain = torch.eye(5).repeat(8, 1)
    assert inception_score(certain, 0, splits=1).value == pytest.approx(5)
    p = drawn(100, 7, 3)
    numpy = p.numpy()
    expected = math.exp((numpy * (np.log(numpy) - np.log(numpy.mean(0)))).sum(1).mean())
    whole = inception_score(p, 0, splits=1)
    assert whole.value == pytest.approx(expected, rel=1e-12) and whole.std == 0
    ten = inception_score(p, 0)
    assert ten == inception_score(p, 0) != inception_score(p, 1)
    assert (ten.splits, ten.n, ten.classes) == (
        10,
        100,
        7,
    ) and ten.value < whole.value  # fewer clips a part
    with pytest.raises(ValueError, match="clips are needed"):
        inception_score(p[:5], 0)


# CLAP, shares


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(0.01, 100), seed=SEEDS)
def test_clap_score_is_a_cosine(gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    audio = rng.normal(size=(12, 8))
    text = rng.normal(size=(12, 8))
    scores = clap_scores(audio, text)
    theirs = torch.nn.functional.cosine_similarity(torch.from_numpy(audio), torch.from_numpy(text))
    assert torch.allclose(scores, theirs, rtol=1e-9) and bool((scores.abs() <= 1 + 1e-12).all())
    assert torch.allclose(clap_scores(gain * audio, text), scores) and torch.allclose(
        clap_scores(text, audio), scores
    )
    assert torch.allclose(clap_scores(audio, -audio), -torch.ones(12).double())


def test_clap_refuses() -> None:
    x = np.ones((3, 4))
    for text, message in (
        (x[:2], "equal shapes"),
        (0 * x, "zeros"),
        (x[:, :2], "different dim"),
        (x * np.nan, "not finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            clap_scores(x, text)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1), level=st.floats(0.5, 0.999))
def test_wilson_interval_is_scipy_s(n: int, share: float, level: float) -> None:
    hits = round(n * share)
    theirs = scipy.stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    ours = wilson_interval(hits, n, level)
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=1e-9),
        pytest.approx(theirs.high, abs=1e-9),
    )
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_prompt_accuracy() -> None:
    result = prompt_accuracy(
        ["one", "two", "two", "four"], np.array(["one", "two", "three", "four"])
    )
    assert (result.value, result.n) == (0.75, 4) and result.low < 0.75 < result.high
    for predicted, requested, message in (
        ([1], [1, 2], "1 samples and 2 prompts"),
        ([], [], "not a share"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_accuracy(predicted, requested)
    with pytest.raises(ValueError, match="level"):
        wilson_interval(1, 2, level=1)


# Paired differences


def test_paired_differences_are_narrower_and_cover() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    repeats = 300
    for seed in range(repeats):
        hard = rng.normal(size=60)
        a = hard + 0.1 + 0.2 * rng.normal(size=60)
        b = hard + 0.2 * rng.normal(size=60)
        result = paired_difference(a, b, seed, draws=300)
        covered += result.low <= 0.1 <= result.high
    assert (
        0.90 <= covered / repeats <= 0.985
    )  # 0.95 less the known shortfall of the bootstrap, within 2.5 sigma
    apart = [bootstrap_interval(values, 0) for values in (a, b)]
    assert result.high - result.low < 0.5 * max(high - low for low, high in apart)
    assert result.n == 60 == result.a_higher + result.b_higher + result.ties
    swapped = paired_difference(b, a, seed, draws=300)
    assert swapped.mean == -result.mean and (swapped.low, swapped.high) == pytest.approx(
        (-result.high, -result.low)
    )


def test_paired_difference_of_equal_systems_is_undecided() -> None:
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0)
    assert (same.mean, same.low, same.high, same.ties, same.decided) == (0, 0, 0, 3, False)
    assert paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], 0).decided
    for b, message in (
        ([1.0, 2.0], "same clips"),
        ([1.0, 2.0, math.nan], "the values of b are not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_difference([1.0, 2.0, 3.0], b, 0)


def test_shifted_interval_holds_its_value() -> None:
    replicates = np.random.default_rng(0).normal(5, 1, size=1000)
    result = shifted_interval(2.0, replicates)
    assert result.bias == pytest.approx(3, abs=0.1)
    assert (result.low, result.high) == (
        pytest.approx(2 - 1.96, abs=0.2),
        pytest.approx(2 + 1.96, abs=0.2),
    )
    with pytest.raises(ValueError, match="level"):
        shifted_interval(2.0, replicates, level=0)


# Registry


def test_every_metric_has_its_entry() -> None:
    expected = {
        *(
            "lsd",
            "lsd_hf",
            "lsd_lf",
            "lsd_ssr_eval",
            "lsd_ssr_eval_hf",
            "lsd_ssr_eval_lf",
            "si_sdr",
            "snr",
        ),
        *("mr_stft", "spectral_convergence", "log_mel", "pesq_nb", "pesq_wb", "stoi", "estoi"),
        *(
            "visqol_speech",
            "visqol_audio",
            "fd_judge",
            "fd_log_mel",
            "fad_infinity",
            "kad",
            "kl",
        ),
        *(
            "inception_score",
            "precision",
            "recall",
            "density",
            "coverage",
            "clap_score",
            "prompt_accuracy",
        ),
        "memorised_share",
    }
    assert set(METRICS) == expected
    for metric in METRICS.values():
        assert metric.needs and len(metric.convention) > 20
        assert ("extra" in metric.needs) == (metric.family == "perceptual")
        assert metric.task != "sr" or "pair" in metric.needs
