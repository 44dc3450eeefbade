"""What training changes of clips and inputs of sr: spectra, resamplers, lossy codecs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from stagecli.data.augment import Alteration, alter, draw_alteration, is_active, make_low
from stagecli.data.degrade import LowPass, degrade
from stagecli.data.lossy import Lossy, LossyCodec, compress_and_decode
from stagecli.data.resampling import Resampling, draw_resampling, resample_down_and_up
from stagecli.schema import Augment

RATE = 16000
PLAIN = Alteration(octaves_db=(0.0,) * 12, gain_db=0.0, resampling=None, lossy=None)


def noise(samples: int = 2 * RATE, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def change_db(before_N: np.ndarray, after_N: np.ndarray, low: float, high: float) -> float:
    """Change of the energy between two frequencies in Hz."""
    window_N = np.blackman(before_N.size)
    hertz_F = np.fft.rfftfreq(before_N.size, 1 / RATE)
    band_F = (hertz_F >= low) & (hertz_F < high)
    powers = [np.abs(np.fft.rfft(x * window_N))[band_F] ** 2 for x in (before_N, after_N)]
    return float(10 * np.log10((powers[1].sum() + 1e-20) / powers[0].sum()))


def delay(before_N: np.ndarray, after_N: np.ndarray) -> int:
    """Samples by which audio is late: the peak of the correlation."""
    size = 2 * before_N.size
    product_F = np.fft.rfft(after_N, size) * np.conj(np.fft.rfft(before_N, size))
    lag = int(np.argmax(np.fft.irfft(product_F)))
    return lag if lag < before_N.size else lag - size


# --- spectrum and level ---------------------------------------------------------------------------


def test_the_equaliser_has_the_drawn_gain_at_each_octave() -> None:
    octaves_db = (3.0, -6.0, 2.0, 0.0, -8.0, 5.0, 9.0, *[9.0] * 5)
    altered_N = alter(noise(), RATE, replace(PLAIN, octaves_db=octaves_db, gain_db=-4.0))
    for number, gain_db in enumerate(octaves_db[:7]):
        hertz = 62.5 * 2**number
        measured = change_db(noise(), altered_N, 0.97 * hertz, 1.03 * hertz)
        assert measured == pytest.approx(gain_db - 4, abs=0.7), hertz


def test_nothing_drawn_changes_nothing() -> None:
    assert np.allclose(alter(noise(), RATE, PLAIN), noise(), atol=1e-6)
    low_pass = LowPass("cheby1", 8, 4000.0)
    low_N, cutoff = make_low(noise(), RATE, low_pass, PLAIN)
    assert np.array_equal(low_N, degrade(noise(), RATE, low_pass))
    assert cutoff == 4000.0


def test_no_option_changes_the_draws_of_another() -> None:
    """Turned on alone or together, an option draws the same, and so do the examples after it."""
    every = Augment(equaliser_db=4, tilt_db=3, gain_db=10, resampled=1.0, lossy=1.0)
    rng = np.random.default_rng(5)
    both = draw_alteration(rng, every, (1000, 6000), RATE)
    for options in (Augment(), Augment(gain_db=10), Augment(resampled=1.0), Augment(lossy=1.0)):
        other = np.random.default_rng(5)
        alteration = draw_alteration(other, options, (1000, 6000), RATE)
        assert alteration.gain_db in (0.0, both.gain_db)
        assert alteration.resampling in (None, both.resampling)
        assert alteration.lossy in (None, both.lossy)
        assert other.bit_generator.state == rng.bit_generator.state
    assert is_active(every) and not is_active(Augment())


def test_slopes_and_gains_stay_within_what_is_asked_for() -> None:
    options = Augment(tilt_db=3, gain_db=6)
    draws = [
        draw_alteration(np.random.default_rng(seed), options, (1000, 6000), RATE)
        for seed in range(300)
    ]
    tilts = np.array([draw.octaves_db[5] for draw in draws])
    gains = np.array([draw.gain_db for draw in draws])
    assert [draw.octaves_db[4] for draw in draws] == [0.0] * 300  # 1000 Hz
    for values, most in ((tilts, 3), (gains, 6)):
        assert 0.9 * most < values.max() <= most
        assert -most <= values.min() < -0.9 * most


# --- resamplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, 16, 64])
@pytest.mark.parametrize("rolloff", [0.85, 0.99])
def test_a_windowed_sinc_is_6_db_down_at_the_cutoff_each_way(width: int, rolloff: float) -> None:
    ratio = Fraction(3, 8)
    cutoff = float(ratio) * RATE * rolloff / 2
    resampling = Resampling(ratio, cutoff, rolloff, width, 8.0)
    low_N = resample_down_and_up(noise(), resampling)
    assert low_N.dtype == np.float32
    assert low_N.shape == noise().shape
    assert delay(noise(), low_N) == 0
    assert abs(change_db(noise(), low_N, 100, 0.5 * cutoff)) < 0.3
    if rolloff < 0.9:  # else what is above half the lower rate folds back onto the cutoff
        at_cutoff = change_db(noise(), low_N, 0.998 * cutoff, 1.002 * cutoff)
        assert at_cutoff == pytest.approx(-12, abs=1.5)
    assert change_db(noise(), low_N, 1.6 * cutoff, RATE / 2) < -40


def test_straight_lines_leave_images_and_fall_off_early() -> None:
    resampling = Resampling(Fraction(1, 4), 2000.0, 1.0, 0, 8.0)
    hertz = 1500
    tone_N = np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE).astype(np.float32)
    low_N = resample_down_and_up(tone_N, resampling)
    assert -6 < change_db(tone_N, low_N, hertz - 20, hertz + 20) < -2
    image = RATE / 4 - hertz
    window_N = np.blackman(tone_N.size)
    spectrum_F = np.abs(np.fft.rfft(low_N * window_N))
    at = round(image * tone_N.size / RATE)
    assert spectrum_F[at] > 0.05 * spectrum_F.max()


def test_cutoffs_of_resamplers_are_spread_over_the_range() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_resampling(rng, (1000.0, 6000.0), RATE) for _ in range(500)]
    cutoffs = np.array([draw.cutoff for draw in draws])
    assert cutoffs.min() > 0.9 * 1000 and cutoffs.max() < 1.05 * 6000
    assert np.allclose(np.histogram(cutoffs, 4, (1000, 6000))[0], 125, atol=35)
    assert {draw.width for draw in draws} == {0, 4, 8, 16, 32, 64}
    assert all(draw.ratio.denominator <= 64 for draw in draws)


# --- lossy codecs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["mp3", "vorbis"])
@pytest.mark.parametrize("compression", [0.0, 0.8])
def test_lossy_codecs_keep_time_and_level(codec: LossyCodec, compression: float) -> None:
    audio_N = noise(RATE)
    audio_N[: RATE // 3] = 0
    low_N = degrade(audio_N, RATE, LowPass("cheby1", 8, 3000.0))
    decoded_N = compress_and_decode(low_N, RATE, Lossy(codec, compression))
    assert decoded_N.dtype == np.float32
    assert decoded_N.shape == low_N.shape
    assert delay(low_N, decoded_N) == 0
    assert change_db(low_N, decoded_N, 100, 2500) == pytest.approx(0, abs=1.5)
    assert not np.array_equal(decoded_N, low_N)


def test_silence_and_loud_audio_survive_a_codec() -> None:
    for codec in ("mp3", "vorbis"):
        lossy = Lossy(codec, 0.5)
        assert not np.any(compress_and_decode(np.zeros(RATE, np.float32), RATE, lossy))
        loud_N = 300 * noise(RATE)
        assert change_db(loud_N, compress_and_decode(loud_N, RATE, lossy), 100, 2500) > -2
