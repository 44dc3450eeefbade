"""Metrics of clip pairs against auraloss, torchmetrics and torchaudio; checks and gain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagecli.metrics import stft
from stagecli.metrics.checks import check_pair, clip_statistics, pair_warnings, shared_peak
from stagecli.metrics.gain import apply_gain, least_squares_gain, pair_gain
from stagecli.metrics.mel import log_mel_distance, mel_filters, window_size
from stagecli.metrics.spectral import lsd, si_sdr, snr
from stagecli.metrics.stft import multi_resolution_stft, spectral_convergence

RATE = 16000


def noise(*shape: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.fixture
def real_pairs(data_dir: Path) -> list[tuple[Tensor, Tensor, int]]:
    """(recording, altered copy, rate): every second sample averages its neighbours, plus noise."""
    folder = data_dir / "esc10"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    pairs = []
    for i, row in enumerate(rows[5::133]):
        samples, rate = soundfile.read(folder / row["path"], dtype="float64", stop=44100)
        clip = torch.from_numpy(samples)
        made = clip.clone()
        made[1:-1:2] = (clip[:-2:2] + clip[2::2]) / 2
        pairs.append((clip, made + noise(len(clip), seed=i, level=1e-3), rate))
    return pairs


# Multi-resolution STFT and spectral convergence


def test_multi_resolution_stft_vector() -> None:
    """Measured once with auraloss 0.4.0 in float32."""
    generator = torch.Generator().manual_seed(0)
    a = 0.1 * torch.randn(1, 1, 48000, generator=generator)
    b = a + 0.01 * torch.randn(1, 1, 48000, generator=generator)
    assert float(multi_resolution_stft(a[0, 0], b[0, 0])["mr_stft"]) == pytest.approx(
        0.1675949, abs=2e-7
    )
    assert float(si_sdr(a[0, 0], b[0, 0], zero_mean=True)) == pytest.approx(19.9755, abs=1e-4)


def compare_with_auraloss(reference: Tensor, estimate: Tensor) -> None:
    """Tolerance 1e-9 relative: auraloss is run in float64 too."""
    from auraloss.freq import MultiResolutionSTFTLoss, SpectralConvergenceLoss, STFTLoss

    theirs = MultiResolutionSTFTLoss(output="full")
    single = STFTLoss(2048, 512, 2048)
    for loss in [single, *theirs.stft_losses]:
        loss.window = loss.window.double().copy_(
            torch.hann_window(len(loss.window), dtype=torch.float64)
        )
    estimate_ = estimate.double()[None, None]
    reference_ = reference.double()[None, None]
    total, convergence, logarithm, *_ = theirs(estimate_, reference_)
    ours = multi_resolution_stft(reference, estimate)
    assert float(ours["mr_stft"]) == pytest.approx(float(total), rel=1e-9)
    assert float(ours["mr_stft_sc"]) == pytest.approx(float(sum(convergence)) / 3, rel=1e-9)
    assert float(ours["mr_stft_log"]) == pytest.approx(float(sum(logarithm)) / 3, rel=1e-9)
    magnitudes = [single.stft(z[0])[0] for z in (estimate_, reference_)]
    expected = SpectralConvergenceLoss()(*magnitudes)
    assert float(spectral_convergence(reference, estimate)) == pytest.approx(
        float(expected), rel=1e-9
    )


def test_stft_distances_are_those_of_auraloss() -> None:
    x = noise(9000)
    compare_with_auraloss(x, 0.7 * x + noise(9000, seed=1, level=0.05))


def test_stft_distances_are_those_of_auraloss_on_recordings(
    real_pairs: list[tuple[Tensor, Tensor, int]],
) -> None:
    for reference, estimate, _ in real_pairs[:2]:
        compare_with_auraloss(reference, estimate)


@settings(max_examples=8, deadline=None)
@given(gain=st.floats(0.1, 10), seed=st.integers(0, 2**16))
def test_stft_laws(gain: float, seed: int) -> None:
    x = noise(3000, seed=seed)
    y = noise(3000, seed=seed + 1)
    assert all(float(value) == 0 for value in multi_resolution_stft(x, x).values())
    assert float(spectral_convergence(x, x)) == 0 == float(log_mel_distance(x, x, RATE))
    assert float(spectral_convergence(x, gain * x)) == pytest.approx(abs(1 - gain), abs=1e-3)
    assert float(multi_resolution_stft(x, gain * x)["mr_stft_log"]) == pytest.approx(
        abs(math.log(gain)), abs=1e-3
    )
    assert float(log_mel_distance(x, gain * x, RATE)) == pytest.approx(
        abs(math.log(gain)), abs=1e-3
    )
    swapped = multi_resolution_stft(y, x)["mr_stft_log"]
    assert float(multi_resolution_stft(x, y)["mr_stft_log"]) == pytest.approx(
        float(swapped), rel=1e-12
    )
    assert float(log_mel_distance(x, y, RATE)) == pytest.approx(
        float(log_mel_distance(y, x, RATE)), rel=1e-12
    )


def test_batches_equal_singles_and_silence_is_defined() -> None:
    x = noise(3, 4000, seed=5)
    y = noise(3, 4000, seed=6)
    x[2] = 0
    together = multi_resolution_stft(x, y)
    convergence = spectral_convergence(x, y)
    mel = log_mel_distance(x, y, RATE)
    for i in range(2):
        assert float(together["mr_stft"][i]) == pytest.approx(
            float(multi_resolution_stft(x[i], y[i])["mr_stft"])
        )
        assert float(convergence[i]) == pytest.approx(float(spectral_convergence(x[i], y[i])))
        assert float(mel[i]) == pytest.approx(float(log_mel_distance(x[i], y[i], RATE)))
    assert (
        math.isnan(together["mr_stft"][2])
        and math.isnan(convergence[2])
        and bool(mel[2].isfinite())
    )
    assert float(spectral_convergence(x[0], 0 * x[0])) == pytest.approx(1, abs=1e-3)
    assert float(log_mel_distance(x[2], x[2], RATE)) == 0


def test_blocks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(2, 5000)
    y = noise(2, 5000, seed=1)
    whole = multi_resolution_stft(x, y)["mr_stft"], log_mel_distance(x, y, RATE)
    monkeypatch.setattr(stft, "VALUES_PER_BLOCK", 9000)
    blocks = multi_resolution_stft(x, y)["mr_stft"], log_mel_distance(x, y, RATE)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(whole, blocks, strict=True))


def test_short_and_bad_pairs_are_refused() -> None:
    x = noise(4000)
    for metric in (
        multi_resolution_stft,
        spectral_convergence,
        lambda a, b: log_mel_distance(a, b, RATE),
    ):
        for a, b, message in (
            (x, x[:-1], "different shapes"),
            (x / 0, x, "NaN"),
            (x[:0], x[:0], "empty"),
            (x[:300], x[:300], "too few"),
        ):
            with pytest.raises(ValueError, match=message):
                metric(a, b)
    with pytest.raises(ValueError, match="positive"):
        log_mel_distance(x, x, 0)


# Log-mel distance


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_mel_filters_are_torchaudio_s(rate: int) -> None:
    from torchaudio.functional import melscale_fbanks

    n_fft = window_size(rate)
    theirs = melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, 80, rate, mel_scale="htk").double()
    assert torch.allclose(mel_filters(rate, n_fft, 80), theirs / theirs.sum(0), atol=2e-4)


def test_log_mel_distance_is_the_formula_on_recordings(
    real_pairs: list[tuple[Tensor, Tensor, int]],
) -> None:
    """Against torchaudio; tolerance 1e-3 relative, because its filters are float32."""
    from torchaudio.functional import melscale_fbanks
    from torchaudio.transforms import Spectrogram

    for reference, estimate, rate in real_pairs[:2]:
        n_fft = window_size(rate)
        spectrogram = Spectrogram(n_fft, hop_length=n_fft // 4, power=1).double()
        filters = melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, 80, rate).double()
        filters = filters / filters.sum(0)
        logs = [(spectrogram(z).T @ filters).clamp_min(1e-5).log() for z in (reference, estimate)]
        expected = float((logs[0] - logs[1]).abs().mean())
        assert float(log_mel_distance(reference, estimate, rate)) == pytest.approx(
            expected, rel=1e-3
        )


# Waveform metrics against torchmetrics


def test_waveform_metrics_are_those_of_torchmetrics(
    real_pairs: list[tuple[Tensor, Tensor, int]],
) -> None:
    """Tolerance 1e-9 dB in float64, both conventions of the mean."""
    from torchmetrics.functional.audio import (
        scale_invariant_signal_distortion_ratio,
        signal_noise_ratio,
    )

    for reference, estimate, _ in real_pairs:
        for zero_mean in (False, True):
            theirs = scale_invariant_signal_distortion_ratio(
                estimate, reference, zero_mean=zero_mean
            )
            assert float(si_sdr(reference, estimate, zero_mean)) == pytest.approx(
                float(theirs), abs=1e-9
            )
        assert float(snr(reference, estimate)) == pytest.approx(
            float(signal_noise_ratio(estimate, reference)), abs=1e-9
        )


# Gain matching


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(0.01, 100), seed=st.integers(0, 2**16))
def test_gain_matching_undoes_a_gain(gain: float, seed: int) -> None:
    x = noise(3000, seed=seed)
    assert float(least_squares_gain(x, gain * x)) == pytest.approx(1 / gain, rel=1e-9)
    used = pair_gain(x, gain * x, RATE, RATE / 2)
    matched = apply_gain(gain * x, used.kept)
    assert float(lsd(x, matched, RATE)) == pytest.approx(0, abs=1e-9)
    assert used.kept == pytest.approx(1 / gain)
    y = x + noise(3000, seed=seed + 1, level=0.02)
    g = float(least_squares_gain(x, y))
    best = float((x - g * y).square().sum())
    assert all(best <= float((x - g * s * y).square().sum()) for s in (0.99, 1.01))


def test_gain_of_batches_and_of_nonsense() -> None:
    x = noise(2, 500)
    assert least_squares_gain(x, torch.stack([2 * x[0], 4 * x[1]])).tolist() == pytest.approx(
        [0.5, 0.25]
    )
    assert apply_gain(x.float(), 2.0).dtype == torch.float32
    assert float(least_squares_gain(x[0], 0 * x[0])) == 1
    for estimate, message in ((x[:, :5], "one shape"), (x / 0, "NaN")):
        with pytest.raises(ValueError, match=message):
            least_squares_gain(x, estimate)
    with pytest.raises(ValueError, match="not positive"):
        apply_gain(x[0], pair_gain(x[0], -x[0], RATE, RATE / 2).kept)


# Checks


def tone(samples: int = RATE, hertz: float = 440.0, level: float = 0.3) -> Tensor:
    return level * torch.sin(
        2 * math.pi * hertz / RATE * torch.arange(samples, dtype=torch.float64)
    )


def test_facts_of_a_good_clip() -> None:
    facts = clip_statistics(noise(RATE).clamp(-0.37, 0.41).float())
    assert facts.num_samples == RATE and facts.warnings() == ()
    assert facts.rms_db == pytest.approx(-20, abs=0.2) and not facts.silent


@pytest.mark.parametrize("hertz", [50.0, 440.0, 3999.0])
def test_clipping_is_distinguished_from_slow_waves(hertz: float) -> None:
    wave = tone(hertz=hertz, level=0.31)
    assert clip_statistics((wave * 32767).round() / 32767).clipped == 0
    clipped = (
        clip_statistics((4 * wave).clamp(-0.7, 0.7))
        if hertz < 2000
        else clip_statistics((9 * wave).clamp(-0.7, 0.7))
    )
    if hertz < 2000:  # 4 samples a period leave no flat top of three
        assert clipped.clipped > 100 and "clipped" in clipped.warnings()[0]
    one_sided = clip_statistics((4 * tone(hertz=50)).clamp(-2, 0.7))
    assert (
        one_sided.clipped == 0 and one_sided.over > 0
    )  # the largest magnitude is the other side's


def test_warnings_of_a_clip() -> None:
    x = noise(RATE)
    assert clip_statistics(torch.zeros(9)).warnings() == ("silent: every sample is zero",)
    assert "nearly silent" in clip_statistics(1e-5 * x).warnings()[0]
    bad = x.clone()
    bad[3] = math.nan
    assert "NaN or infinite samples: 1" in clip_statistics(bad).warnings()[0]
    assert any("beyond full scale" in line for line in clip_statistics(20 * x).warnings())
    assert any("offset" in line for line in clip_statistics(x + 0.1).warnings())
    for target in (1.0, 0.95, 0.5, 10 ** (-1 / 20)):
        assert clip_statistics(x / x.abs().max() * target).normalised_to == pytest.approx(target)
    for wrong in (x[None], x[:0], (x * 100).short()):
        with pytest.raises(ValueError, match="floating point"):
            clip_statistics(wrong)


def test_pairs_that_cannot_be_scored_say_why() -> None:
    x = noise(RATE)
    check_pair(x, x, RATE)
    for reference, estimate, rate, message in (
        (x, x[:-7], RATE, "different lengths: reference 16000 samples, estimate 15993"),
        (x, x / 0, RATE, "estimate contains NaN"),
        (x[:100], x[:100], RATE, "too short: 0.006 s"),
        (0 * x, x, RATE, "reference is silent"),
        (x[None], x, RATE, "one channel"),
        (x, x, 0, "sample_rate"),
        ((x * 9).int(), (x * 9).int(), RATE, "floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            check_pair(reference, estimate, rate)


def test_warnings_of_a_pair() -> None:
    def warnings(reference: Tensor, estimate: Tensor) -> tuple[str, ...]:
        return pair_warnings(reference, estimate, pair_gain(reference, estimate, RATE, RATE / 2))

    x = noise(RATE).clamp(-0.37, 0.41)
    assert warnings(x, x + noise(RATE, seed=1, level=0.01)) == ()
    normalised = x / x.abs().max()
    level, peak = sorted(warnings(x, normalised), key=lambda text: "peak" in text)
    assert peak == "estimate: peak 1: perhaps peak-normalised"
    assert level.startswith("level: the estimate is off by about +8.6 dB")
    assert "0.86 of LSD by itself" in level
    assert warnings(normalised, normalised) == ()
    assert "inverted" in warnings(x, -x)[0]
    assert warnings(x, 0 * x) == ("estimate: silent: every sample is zero",)


def test_a_shared_peak_reveals_normalisation() -> None:
    assert shared_peak([0.5, 0.501, 0.4999]) == 0.5
    assert (
        shared_peak([0.5, 0.6, 0.5]) is None
        and shared_peak([0.5, 0.5]) is None
        and shared_peak([0.0] * 3) is None
    )
