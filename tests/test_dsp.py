"""The mel filter bank and the resampler that codecs, metrics and encoders share."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio

from stagecli.dsp.mel import EmptyMelFilterError, Scale, mel_filters
from stagecli.dsp.resample import PRECISE, STANDARD, Quality, resample, resample_tensor

RATES = [(44100, 16000), (16000, 44100), (48000, 44100), (22050, 8000)]


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_filters_equal_those_of_torchaudio(sample_rate: int, scale: Scale) -> None:
    """Ours are computed in float64, torchaudio's in float32."""
    n_fft = 2048
    bins = n_fft // 2 + 1
    bands = 64
    f_min = 20.0
    nyquist = sample_rate / 2
    ours = mel_filters(sample_rate=sample_rate, n_fft=n_fft, bands=bands, f_min=f_min, scale=scale)
    theirs = torchaudio.functional.melscale_fbanks(
        bins, f_min, nyquist, bands, sample_rate, norm="slaney", mel_scale=scale
    )
    assert ours.dtype == torch.float64
    assert (ours - theirs).abs().max() < 4e-6 * ours.max()


def test_norms_of_mel_filters() -> None:
    keys = {"sample_rate": 16000, "n_fft": 16384, "bands": 40}
    peak = mel_filters(**keys, norm="peak")
    area = mel_filters(**keys, norm="area")
    total = mel_filters(**keys, norm="sum")
    assert peak.max(0).values.min() > 0.9
    assert peak.max() <= 1
    bin_hz = 16000 / 16384
    assert (area.sum(0) * bin_hz).numpy() == pytest.approx(np.ones(40), rel=2e-3)
    assert total.sum(0).numpy() == pytest.approx(np.ones(40), abs=1e-12)
    for filters in (area, total):
        assert torch.allclose(filters / filters.max(0).values, peak / peak.max(0).values)


def test_a_filter_without_a_bin_is_refused() -> None:
    with pytest.raises(
        EmptyMelFilterError, match=r"80 mel bands are too many: .* hold no frequency bin"
    ):
        mel_filters(sample_rate=16000, n_fft=128, bands=80)


@pytest.mark.parametrize(("rate", "to"), RATES)
@pytest.mark.parametrize(("quality", "error"), [(STANDARD, 1e-3), (PRECISE, 1e-4)])
def test_resampling_keeps_tones_and_removes_what_would_alias(
    rate: int, to: int, quality: Quality, error: float
) -> None:
    time_N = np.arange(rate) / rate
    kept = 0.4 * min(rate, to)
    tone_N = resample(np.sin(2 * np.pi * kept * time_N), rate, to, quality)
    expected_N = np.sin(2 * np.pi * kept * np.arange(to) / to)
    assert tone_N.dtype == quality.dtype
    assert len(tone_N) == to
    assert np.abs(tone_N - expected_N)[1000:-1000].max() < error
    if rate > to:
        alias_N = resample(np.sin(2 * np.pi * 0.53 * to * time_N), rate, to, quality)
        assert np.abs(alias_N)[1000:-1000].max() < 2e-4


def test_one_rate_and_empty_audio_pass_through() -> None:
    audio_N = np.ones(10, np.float32)
    assert resample(audio_N, 8000, 8000) is audio_N
    assert resample(np.zeros(0), 8000, 16000).shape == (0,)


def test_tensors_are_resampled_as_encoders_expect_and_differentiably() -> None:
    audio_BN = torch.randn(2, 4410, requires_grad=True)
    resampled_BN = resample_tensor(audio_BN, 44100, 16000)
    assert resampled_BN.equal(torchaudio.functional.resample(audio_BN, 44100, 16000))
    resampled_BN.square().sum().backward()
    assert audio_BN.grad is not None
    assert audio_BN.grad.abs().max() > 0


def test_the_resampler_needs_no_torch() -> None:
    code = "import sys, stagecli.dsp.resample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
