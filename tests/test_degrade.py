"""The low-resolution input of sr: nothing left above the cutoff, nothing lost below."""

from __future__ import annotations

import time
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.data import degrade as degrade_module
from stagecli.data.degrade import LowPass, degrade, draw_low_pass, response
from stagecli.schema import Evaluate, FilterFamily

RATE = 44100
FAMILIES = get_args(FilterFamily)


def noise(samples: int = RATE, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def gain_db(
    before_N: np.ndarray, after_N: np.ndarray, low: float, high: float, rate: int = RATE
) -> float:
    """Change of the energy between two frequencies, dB; Blackman, against leakage from the ends."""
    window_N = np.blackman(len(before_N))
    hertz_F = np.fft.rfftfreq(len(before_N), 1 / rate)
    band_F = (hertz_F >= low) & (hertz_F < high)
    energy = [np.sum(np.abs(np.fft.rfft(x * window_N))[band_F] ** 2) for x in (before_N, after_N)]
    return float(10 * np.log10(energy[1] / energy[0]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [2, 8, 10])
@pytest.mark.parametrize("cutoff", [1000.0, 4000.0, 5555.5, 8123.4, 20000.0])
def test_nothing_is_left_above_the_cutoff(family: FilterFamily, order: int, cutoff: float) -> None:
    audio_N = noise()
    low_N = degrade(audio_N, RATE, LowPass(family, order, cutoff))
    assert low_N.dtype == np.float32
    assert low_N.shape == audio_N.shape
    assert gain_db(audio_N, low_N, 1.05 * cutoff, RATE / 2) < -80
    assert gain_db(audio_N, low_N, 0.02 * cutoff, 0.2 * cutoff) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("cutoff", [1000.0, 4000.0, 7999.9, 16000.0, 21000.0])
def test_cheby1_8_keeps_the_pass_band(cutoff: float) -> None:
    audio_N = noise(seed=1)
    low_N = degrade(audio_N, RATE, LowPass("cheby1", 8, cutoff))
    for low in np.arange(0.05, 0.8, 0.05):
        assert abs(gain_db(audio_N, low_N, low * cutoff, (low + 0.05) * cutoff)) < 0.5


def test_bessel_attenuates_like_butter_at_the_cutoff() -> None:
    audio_N = noise()
    for family in ("bessel", "butter"):
        for order in (2, 6, 10):
            low_N = degrade(audio_N, RATE, LowPass(family, order, 4000.0))
            assert -5.5 < gain_db(audio_N, low_N, 0.75 * 4000, 0.8 * 4000) <= 0.05
            # Both families are 3 dB down at the cutoff, and the filter is applied twice.
            assert -8 < gain_db(audio_N, low_N, 0.95 * 4000, 4000) < -3.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [1, 2, 5, 10])
@pytest.mark.parametrize("cutoff", [300.0, 4000.0, 15000.0, 21000.0])
def test_is_scipys_filter_forward_and_backward(
    family: FilterFamily, order: int, cutoff: float
) -> None:
    """The closed-form response equals that of the sections that SciPy designs."""
    from scipy import signal

    if family == "bessel":
        sections = signal.bessel(order, cutoff, norm="mag", output="sos", fs=RATE)
    else:
        sections = signal.iirfilter(
            order, cutoff, rp=0.05, rs=60.0, btype="lowpass", ftype=family, output="sos", fs=RATE
        )
    hertz_F = np.linspace(0, cutoff, 500)
    _, expected_F = signal.sosfreqz(sections, hertz_F, fs=RATE)
    np.testing.assert_allclose(
        response(LowPass(family, order, cutoff), hertz_F, RATE),
        np.abs(expected_F) ** 2,
        rtol=1e-6,
        atol=1e-9,
    )


def test_the_cutoff_may_be_any_real_number() -> None:
    audio_N = noise(4 * RATE)
    for cutoff in (4000.0, 4001.0, 4007.3):
        low_N = degrade(audio_N, RATE, LowPass("cheby1", 8, cutoff))
        spectrum_F = np.abs(np.fft.rfft(low_N * np.blackman(len(low_N)))) ** 2
        cumulated_F = np.cumsum(spectrum_F[::-1])[::-1] / spectrum_F.sum()
        edge = np.fft.rfftfreq(len(low_N), 1 / RATE)[np.argmax(cumulated_F < 1e-3)]
        assert edge / cutoff == pytest.approx(0.988, abs=0.002)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(0, 700),
    rate=st.sampled_from([8000, 16000, 24000, 44100]),
    share=st.floats(0.01, 0.999),
    family=st.sampled_from(FAMILIES),
    order=st.integers(1, 11),
)
def test_length_is_the_inputs(
    samples: int, rate: int, share: float, family: FilterFamily, order: int
) -> None:
    audio_N = noise(samples)
    before_N = audio_N.copy()
    low_N = degrade(audio_N, rate, LowPass(family, order, share * rate / 2))
    assert low_N.shape == (samples,)
    assert np.isfinite(low_N).all()
    assert np.array_equal(audio_N, before_N)
    assert not np.shares_memory(audio_N, low_N)


def test_no_delay_and_quiet_ends() -> None:
    time_N = np.arange(RATE) / RATE
    tone_N = np.sin(2 * np.pi * 440 * time_N + 0.7).astype(np.float32)
    for family in ("cheby1", "ellip", "butter"):
        error_N = degrade(tone_N, RATE, LowPass(family, 8, 4000.0)) - tone_N
        assert np.abs(error_N[2000:-2000]).max() < 0.015
        assert np.abs(error_N).max() < 0.1
    assert (
        np.abs(
            degrade(np.full(9000, 0.5, np.float32), RATE, LowPass("butter", 4, 300.0)) - 0.5
        ).max()
        < 1e-4
    )


def test_same_input_same_output() -> None:
    low_pass = LowPass("ellip", 7, 3210.9)
    assert np.array_equal(degrade(noise(), RATE, low_pass), degrade(noise(), RATE, low_pass))


@pytest.mark.parametrize("cutoff", [RATE / 2, 30000.0])
def test_cutoff_at_or_above_nyquist_is_refused(cutoff: float) -> None:
    with pytest.raises(ValueError, match="Nyquist"):
        degrade(noise(), RATE, LowPass("butter", 4, cutoff))


@pytest.mark.parametrize("bad", [("boxcar", 4, 1000.0), ("butter", 0, 1000.0), ("butter", 4, 0.0)])
def test_senseless_filters_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown|positive"):
        LowPass(*bad)


def test_drawn_filters_cover_their_ranges_and_repeat() -> None:
    families: list[FilterFamily] = ["cheby1", "bessel"]
    rng = np.random.default_rng(3)
    drawn = [draw_low_pass(rng, (2000.0, 16000.0), families, (2, 10)) for _ in range(2000)]
    assert {d.family for d in drawn} == set(families)
    assert {d.order for d in drawn} == set(range(2, 11))
    cutoffs = np.array([d.cutoff for d in drawn])
    assert 2000 <= cutoffs.min() < 2050
    assert 15950 < cutoffs.max() <= 16000
    assert np.median(cutoffs) == pytest.approx(9000, rel=0.05)
    again = np.random.default_rng(3)
    assert drawn[:20] == [
        draw_low_pass(again, (2000.0, 16000.0), families, (2, 10)) for _ in range(20)
    ]
    one = np.random.default_rng(5)
    other = np.random.default_rng(5)
    draw_low_pass(one, (2000.0, 16000.0), families, (2, 10))
    draw_low_pass(other, (4000.0, 4000.0), ["butter"], (8, 8))
    assert one.random() == other.random()


def test_evaluation_filter_is_the_recipes() -> None:
    assert degrade_module.test_low_pass(Evaluate(), 4000.0) == LowPass("cheby1", 8, 4000.0)
    assert degrade_module.test_low_pass(Evaluate(filter="bessel", order=5), 123.4) == LowPass(
        "bessel", 5, 123.4
    )


def test_degrading_is_cheap() -> None:
    audio_N = noise(RATE * 3 // 2)
    low_pass = LowPass("cheby1", 8, 8123.4)
    degrade(audio_N, RATE, low_pass)
    spent = []
    for _ in range(10):
        start = time.perf_counter()
        degrade(audio_N, RATE, low_pass)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.05  # 4 ms measured; the margin is for busy machines
