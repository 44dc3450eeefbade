"""Metrics against published vectors, independent formulas and their own laws."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import scipy.linalg
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagecli.metrics import stft
from stagecli.metrics.baselines import copy_up
from stagecli.metrics.bootstrap import bootstrap_interval
from stagecli.metrics.cutoffs import split_bin
from stagecli.metrics.distance import frechet_distance
from stagecli.metrics.lsd_presets import LSD_PRESETS
from stagecli.metrics.mel import log_mel_statistics
from stagecli.metrics.registry import METRICS
from stagecli.metrics.spectral import lsd, lsd_bands, si_sdr, snr

RATE = 16000
PRESETS = sorted(LSD_PRESETS)


def noise(*shape: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_pass(audio_N: Tensor, sample_rate: int, cutoff_hz: float) -> Tensor:
    """Ideal: every bin of the clip's transform from the cutoff up is zero."""
    spectrum_F = torch.fft.rfft(audio_N.double())
    spectrum_F[math.ceil(cutoff_hz * audio_N.shape[-1] / sample_rate) :] = 0
    return torch.fft.irfft(spectrum_F, audio_N.shape[-1]).to(audio_N.dtype)


def published_lsd(
    reference: np.ndarray, estimate: np.ndarray, sample_rate: int, preset: str
) -> float:
    """The published formulas once more, frame by frame in numpy."""
    n_fft, hop = (
        (2048, 512)
        if preset == "nuwave"
        else (int(2048 / (44100 / sample_rate)), int(sample_rate / 100))
    )
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    mode: Literal["reflect", "constant"] = "reflect" if preset == "nuwave" else "constant"
    distances = []
    x, y = (np.pad(z, n_fft // 2, mode=mode) for z in (reference, estimate))
    for start in range(0, len(x) - n_fft + 1, hop):
        x_F, y_F = (np.abs(np.fft.rfft(z[start : start + n_fft] * window)) for z in (x, y))
        if preset == "nuwave":
            d_F = np.log10(np.maximum(x_F**2, 1e-8)) - np.log10(np.maximum(y_F**2, 1e-8))
        else:
            d_F = np.log10(x_F**2 / (y_F + 1e-12) ** 2 + 1e-12)
        distances.append(np.sqrt(np.mean(d_F**2)))
    return float(np.mean(distances))


# Log-spectral distance


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_lsd_is_the_published_formula(preset: str, rate: int) -> None:
    x = noise(rate // 2, seed=1).double()
    y = low_pass(x, rate, rate / 4) + noise(rate // 2, seed=2, level=1e-4)
    expected = published_lsd(x.numpy(), y.numpy(), rate, preset)
    assert float(lsd(x, y, rate, preset)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.05, 20), seed=st.integers(0, 2**16))
def test_lsd_laws(preset: str, gain: float, seed: int) -> None:
    x = noise(4000, seed=seed).double()
    y = noise(4000, seed=seed + 1).double()
    assert float(lsd(x, x, RATE, preset)) == pytest.approx(0, abs=1e-9)
    # The law holds above the floor; noise of level 0.1 has a bin below the clamp once in some 1e7.
    assert float(lsd(x, gain * x, RATE, preset)) == pytest.approx(
        2 * abs(math.log10(gain)), abs=1e-3
    )
    assert float(lsd(x, y, RATE, preset)) > 0
    assert float(lsd(x, y, RATE)) == pytest.approx(float(lsd(y, x, RATE)), rel=1e-12)


def test_gain_counts_only_above_the_clamp() -> None:
    x = noise(8000, level=1e-7)  # below the clamp of `nuwave`, far above the floor of `ssr_eval`
    assert float(lsd(x, 0.5 * x, RATE, "nuwave")) == 0
    assert float(lsd(x, 0.5 * x, RATE, "ssr_eval")) == pytest.approx(0.6018, abs=2e-3)


def test_presets_differ_as_documented() -> None:
    assert LSD_PRESETS["nuwave"].sizes(48000) == LSD_PRESETS["nuwave"].sizes(16000) == (2048, 512)
    assert LSD_PRESETS["ssr_eval"].sizes(48000) == (2229, 480)
    assert LSD_PRESETS["ssr_eval"].sizes(16000) == (743, 160)
    for rate in (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000):
        assert LSD_PRESETS["ssr_eval"].sizes(rate) == (int(2048 / (44100 / rate)), int(rate / 100))
    x = noise(RATE)
    cut = low_pass(x, RATE, 4000)
    clamped, ratio = (float(lsd(x, cut, RATE, preset)) for preset in PRESETS)
    assert ratio > clamped + 1  # the lower floor punishes an empty band more
    silent = torch.zeros(RATE)
    assert float(lsd(silent, silent, RATE, "nuwave")) == 0
    assert float(lsd(silent, silent, RATE, "ssr_eval")) == pytest.approx(12)
    assert float(lsd(silent, x, RATE, "ssr_eval")) == pytest.approx(12)


@pytest.mark.parametrize("preset", PRESETS)
def test_bands_are_consistent_with_the_whole(preset: str) -> None:
    x = noise(RATE, seed=3)
    y = noise(RATE, seed=4)
    y = y + 0.3 * low_pass(x, RATE, 3000)
    bands = {name: float(value) for name, value in lsd_bands(x, y, RATE, 4000, preset).items()}
    n_fft, _ = LSD_PRESETS[preset].sizes(RATE)
    low = split_bin(n_fft, RATE, 4000) / (n_fft // 2 + 1)
    high = 1 - low
    assert bands["lsd"] == float(lsd(x, y, RATE, preset))
    # Per frame the squares add up by their share of bins, which bounds the mean on both sides.
    assert (
        bands["lsd"]
        >= math.hypot(math.sqrt(high) * bands["lsd_hf"], math.sqrt(low) * bands["lsd_lf"]) - 1e-9
    )
    assert bands["lsd"] <= math.sqrt(high) * bands["lsd_hf"] + math.sqrt(low) * bands["lsd_lf"]
    gained = lsd_bands(x, 0.5 * x, RATE, 4000, preset)
    assert all(float(value) == pytest.approx(0.60206, abs=1e-3) for value in gained.values())


def test_split_is_where_nuwave2_puts_it() -> None:
    assert split_bin(2048, 48000, 4000) == 170
    assert split_bin(2048, 48000, 12000) == 512
    x = noise(48000)
    cut = lsd_bands(x, low_pass(x, 48000, 4000), 48000, 4000)
    assert float(cut["lsd_lf"]) < 0.1 < 3 < float(cut["lsd_hf"])


@pytest.mark.parametrize("preset", PRESETS)
def test_batch_equals_single(preset: str) -> None:
    x = noise(3, 9000, seed=5)
    y = noise(3, 9000, seed=6)
    together = lsd_bands(x, y, RATE, 4000, preset)
    for i in range(3):
        alone = lsd_bands(x[i], y[i], RATE, 4000, preset)
        assert all(alone[k].shape == () for k in alone)
        assert all(
            float(together[k][i]) == pytest.approx(float(alone[k]), rel=1e-12) for k in alone
        )
    for metric in (si_sdr, snr):
        alone_B = [float(metric(x[i], y[i])) for i in range(3)]
        assert metric(x, y).tolist() == pytest.approx(alone_B, rel=1e-12)


def test_blocks_of_frames_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(2, RATE, seed=7)
    y = noise(2, RATE, seed=8)
    whole = lsd_bands(x, y, RATE, 4000)
    monkeypatch.setattr(stft, "VALUES_PER_BLOCK", 1025 * 2 * 3)
    blocks = lsd_bands(x, y, RATE, 4000)
    assert all(torch.allclose(whole[k], blocks[k], rtol=1e-12) for k in whole)


@pytest.mark.parametrize("metric", [lambda x, y: lsd(x, y, RATE), si_sdr, snr])
def test_pairs_that_cannot_be_scored_are_refused(metric) -> None:  # type: ignore[no-untyped-def]
    x = noise(4000)
    bad = x.clone()
    bad[7] = math.nan
    cases = [
        (x, x[:-1], "different shapes"),
        (x, bad, "estimate contains NaN"),
        (bad, x, "reference contains NaN"),
        (x[:0], x[:0], "empty"),
        ((x * 32768).short(), x, "floating point"),
        (x.reshape(1, 1, -1), x.reshape(1, 1, -1), r"\[N\] or \[B, N\]"),
    ]
    for reference, estimate, message in cases:
        with pytest.raises(ValueError, match=message):
            metric(reference, estimate)


def test_lsd_refuses_empty_bands_unknown_presets_and_short_clips() -> None:
    x = noise(4000)
    for split_hz in (0, 3, 8000, 9000):
        with pytest.raises(ValueError, match="no bins"):
            lsd_bands(x, x, RATE, split_hz)
    with pytest.raises(ValueError, match="nuwave, ssr_eval"):
        lsd(x, x, RATE, "nuwav")
    with pytest.raises(ValueError, match="too few"):
        lsd(x[:1024], x[:1024], RATE)
    assert float(lsd(x[:1025], x[:1025], RATE)) == 0


# SI-SDR and SNR


def test_waveform_vectors() -> None:
    target = torch.tensor([3.0, -0.5, 2.0, 7.0])
    estimate = torch.tensor([2.5, 0.0, 2.0, 8.0])
    assert float(si_sdr(target, estimate)) == pytest.approx(18.4030, abs=5e-5)
    assert float(snr(target, estimate)) == pytest.approx(16.1805, abs=5e-5)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.01, 100), offset=st.floats(-1, 1), seed=st.integers(0, 2**16))
def test_waveform_laws(gain: float, offset: float, seed: int) -> None:
    x = noise(500, seed=seed).double()
    y = x + noise(500, seed=seed + 1, level=0.03)
    assert float(si_sdr(x, gain * y)) == pytest.approx(float(si_sdr(x, y)), abs=1e-6)
    assert float(si_sdr(x, y + offset, zero_mean=True)) == pytest.approx(
        float(si_sdr(x, y, zero_mean=True)), abs=1e-6
    )
    assert float(snr(x, (1 + gain) * x)) == pytest.approx(-20 * math.log10(gain), abs=1e-6)


def test_silence_is_defined() -> None:
    x = noise(1000)
    silent = torch.zeros(1000)
    assert math.isnan(si_sdr(silent, x)) and math.isnan(snr(silent, x))
    assert math.isnan(si_sdr(silent, silent)) and math.isnan(snr(silent, silent))
    assert float(si_sdr(x, silent)) == -math.inf
    assert float(snr(x, silent)) == 0
    assert float(snr(x, x)) == math.inf
    assert math.isnan(si_sdr(silent + 0.3, x, zero_mean=True))
    assert float(si_sdr(x, silent + 0.3, zero_mean=True)) == -math.inf


# Frechet distance


def test_frechet_vector() -> None:
    state = np.random.RandomState(0)
    x = state.randn(500, 16)
    y = state.randn(400, 16) * 1.5 + 0.3
    result = frechet_distance(x, y)
    assert result.value == pytest.approx(6.0759942272, abs=1e-9)
    assert (result.n, result.m, result.dim, result.biased) == (500, 400, 16, False)
    assert frechet_distance(torch.from_numpy(y), torch.from_numpy(x)).value == pytest.approx(
        result.value, rel=1e-10
    )


@settings(max_examples=20, deadline=None)
@given(
    dim=st.integers(1, 12),
    extra=st.integers(2, 60),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 2**31 - 1),
)
def test_frechet_against_a_general_matrix_root(
    dim: int, extra: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(dim + extra, dim)) @ rng.normal(size=(dim, dim))
    y = scale * rng.normal(size=(dim + 2 * extra, dim)) + rng.normal(size=dim)
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False, ddof=1)) for z in (x, y))
    cross = np.trace(np.real(scipy.linalg.sqrtm(cov_x @ cov_y)))
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    result = frechet_distance(x, y)
    assert result.value == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert result.value >= 0
    assert frechet_distance(x, x).value == pytest.approx(
        0, abs=1e-6 * max(1.0, float(np.trace(cov_x)))
    )


def test_frechet_of_equal_distributions_falls_with_n() -> None:
    rng = np.random.default_rng(0)
    results = [
        frechet_distance(rng.normal(size=(n, 32)), rng.normal(size=(n, 32)))
        for n in (32, 64, 256, 1024, 4096)
    ]
    values = [result.value for result in results]
    assert values == sorted(values, reverse=True) and values[-1] < 0.05 * values[0]
    assert [result.biased for result in results] == [True, False, False, False, False]


def test_frechet_refuses() -> None:
    x = np.random.default_rng(0).normal(size=(10, 4))
    for bad, message in (
        (x[:1], "at least two"),
        (x[:, :3], "different dim"),
        (x * np.nan, "not finite numbers"),
        (x[0], "N, D"),
    ):
        with pytest.raises(ValueError, match=message):
            frechet_distance(x, bad)


def test_log_mel_statistics() -> None:
    audio = torch.cat([noise(2, RATE, seed=1), torch.zeros(1, RATE)])
    embedding = log_mel_statistics(audio, RATE)
    assert embedding.shape == (3, 128) and embedding.dtype == torch.float64
    assert torch.equal(embedding[1], log_mel_statistics(audio[1:2], RATE)[0])
    assert torch.equal(embedding, log_mel_statistics(audio, RATE))
    assert float(embedding[0, 32:64].mean()) == pytest.approx(math.log(0.01), abs=0.1)
    assert (
        embedding[2, :64].tolist() == pytest.approx([math.log(1e-8)] * 64)
        and not embedding[2, 64:].any()
    )
    louder = log_mel_statistics(2 * audio[:1], RATE)[0]
    assert torch.allclose(louder[:64], embedding[0, :64] + math.log(4)) and torch.allclose(
        louder[64:], embedding[0, 64:]
    )
    assert log_mel_statistics(audio, RATE, bands=20).shape == (3, 40)
    for rate in (8000, 22050, 44100, 48000):
        assert log_mel_statistics(noise(1, rate), rate).isfinite().all()
    with pytest.raises(ValueError, match="too many"):
        log_mel_statistics(audio, RATE, bands=512)
    with pytest.raises(ValueError, match="too few"):
        log_mel_statistics(audio[:, :512], RATE)


# Copy-up, bootstrap, registry


@pytest.mark.parametrize("samples", [RATE, RATE + 1, 3 * 5003])
def test_copy_up_keeps_the_low_band_and_fills_the_high_one(samples: int) -> None:
    audio = (
        low_pass(noise(samples).double().cumsum(0) * 0.05, RATE, 3000) + 0.2
    )  # red noise with an offset
    result = copy_up(audio, RATE, 3000)
    assert result.shape == audio.shape and result.dtype == audio.dtype
    before = torch.fft.rfft(audio)
    after = torch.fft.rfft(result)
    cutoff = math.ceil(3000 * samples / RATE)
    assert torch.allclose(before[:cutoff], after[:cutoff], atol=1e-9 * float(before.abs().max()))
    power = after.abs().square()
    thirds = [float(part.mean()) for part in power[cutoff:].chunk(3)]
    assert thirds[0] > thirds[1] > thirds[2] > 0
    # The copy starts with the bass, so its first third lies somewhat above the level of the edge.
    edge = float(power[int(0.85 * cutoff) : cutoff].mean())
    assert thirds[0] < 3 * edge < 0.05 * float(power[:cutoff].mean())
    assert float(result.square().sum()) < 1.1 * float(audio.square().sum())
    assert (
        float(lsd_bands(audio, result, RATE, 3000)["lsd_lf"]) < 0.2
    )  # the one bin beside the cutoff


def test_copy_up_edges() -> None:
    assert not copy_up(torch.zeros(RATE), RATE, 3000).any()
    for audio, cutoff, message in (
        (noise(RATE), 8000, "cutoff"),
        (noise(RATE), 10, "cutoff"),
        (noise(64), 3000, "too few"),
        (noise(1, RATE), 3000, r"\[N\]"),
        (noise(RATE) / 0, 3000, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_up(audio, RATE, cutoff)


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=200)
    low, high = bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.05) and high == pytest.approx(
        values.mean() + half, abs=0.05
    )
    assert bootstrap_interval(values, seed=1) == (low, high) != bootstrap_interval(values, seed=2)
    narrow = bootstrap_interval(values.tolist(), seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval([2.0, 2.0, 2.0], seed=0) == (2.0, 2.0)
    for bad in ([1.0], [], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="values"):
            bootstrap_interval(bad, seed=0)


def test_registry() -> None:
    assert {"lsd", "lsd_hf", "lsd_lf", "si_sdr", "snr", "fd_log_mel"} <= set(METRICS)
    for name, metric in METRICS.items():
        assert metric.name == name and metric.convention and metric.better in ("lower", "higher")
        assert (metric.preset is not None) == (metric.family == "lsd")
        if metric.preset:
            assert LSD_PRESETS[metric.preset].convention in metric.convention
    code = (
        "import sys, stagecli.metrics.registry\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real recordings


def test_real_recordings() -> None:
    data = os.environ.get("STAGECLI_DATA")
    if not data:
        pytest.skip("STAGECLI_DATA is not set: no recordings to measure")
    folder = Path(data) / "esc10"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for row in [row for row in rows if row["fold"] == 5][::30]:
        samples, rate = soundfile.read(folder / row["path"], dtype="float32")
        clip = torch.from_numpy(samples)
        cut = low_pass(clip, rate, 8000)
        bands = {name: float(value) for name, value in lsd_bands(clip, cut, rate, 8000).items()}
        assert bands["lsd"] > 0.3 and bands["lsd_hf"] > bands["lsd"]
        assert bands["lsd_lf"] < 0.2
        filled = copy_up(cut, rate, 8000)
        assert float(lsd_bands(clip, filled, rate, 8000)["lsd_lf"]) < 0.25
        assert log_mel_statistics(clip[None], rate).isfinite().all()
