"""PESQ, STOI and ViSQOL on real speech: against their packages, their bands, missing packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from stagecli.metrics.perceptual import (
    TOP_HZ,
    MissingPackageError,
    band_verdict,
    pesq,
    resampled,
    stoi,
    visqol,
)


def degraded(clip: Tensor, level: float = 0.02) -> Tensor:
    noise = torch.randn(len(clip), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return clip + level * noise


@pytest.fixture
def speech(data_dir: Path) -> Tensor:
    """Four spoken digits of one speaker, 8 kHz."""
    folder = data_dir / "fsdd"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    paths = [folder / row["path"] for row in rows if row["speaker"] == "george"][:4]
    return torch.from_numpy(
        np.concatenate([soundfile.read(path, dtype="float64")[0] for path in paths])
    )


# Band


@pytest.mark.parametrize(
    ("name", "cutoff", "rate", "verdict", "words"),
    [
        ("pesq_wb", 8000, 48000, "refused", "nothing of the band from 8000 Hz"),
        ("pesq_wb", 4000, 48000, "warned", "20 % of the restored band"),
        ("pesq_wb", 4000, 16000, "seen", "4000 to 8000 Hz"),
        ("pesq_nb", 4000, 48000, "refused", "up to 3700 Hz"),
        ("stoi", 4000, 16000, "warned", "7 %"),
        ("estoi", 8000, 16001, "refused", "4277"),
        ("visqol_speech", 12000, 48000, "refused", "8000"),
        ("visqol_audio", 4000, 48000, "seen", "24000"),
        ("visqol_audio", 4000, 96000, "warned", "45 %"),
    ],
)
def test_band_verdicts(name: str, cutoff: float, rate: int, verdict: str, words: str) -> None:
    result = band_verdict(name, cutoff, rate)
    assert result.verdict == verdict and words in result.reason


def test_band_verdict_of_an_encoder_and_of_nonsense() -> None:
    assert band_verdict("an encoder", 8000, 44100, top_hz=8000).verdict == "refused"
    for name, cutoff, message in (
        ("pesk", 4000, "unknown"),
        ("stoi", 9000, "outside"),
        ("stoi", 0, "outside"),
    ):
        with pytest.raises(ValueError, match=message):
            band_verdict(name, cutoff, 16000)


def test_the_resampler_keeps_the_band_and_stops_the_rest() -> None:
    time = np.arange(44100) / 44100
    inner = slice(2000, 14000)
    kept = resampled(np.sin(2 * np.pi * 7000 * time), 44100, 16000)
    assert np.allclose(
        kept[inner], np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000)[inner], atol=1e-3
    )
    assert np.abs(resampled(np.sin(2 * np.pi * 9000 * time), 44100, 16000)[inner]).max() < 1e-4
    assert len(resampled(time, 44100, 16000)) == 16000 and resampled(time, 16000, 16000) is time


# Packages


def test_pesq_is_the_package_s(speech: Tensor) -> None:
    """Equal at the package's own rate; tolerance 0."""
    from pesq import pesq as package

    noisy = degraded(speech)
    assert pesq(speech, noisy, 8000, "nb") == package(8000, speech.numpy(), noisy.numpy(), "nb")
    wide = [torch.from_numpy(resampled(z.numpy(), 8000, 16000)) for z in (speech, noisy)]
    arrays = (wide[0].numpy(), wide[1].numpy())
    assert pesq(speech, noisy, 8000) == package(16000, *arrays, "wb")
    assert pesq(*wide, 16000, "nb") == package(16000, *arrays, "nb"), "not resampled to 8 kHz"
    assert pesq(speech, speech, 8000, "nb") == pytest.approx(4.5486, abs=1e-3)
    assert pesq(speech, speech, 8000) == pytest.approx(4.6439, abs=1e-3)
    assert pesq(speech, 0.5 * noisy, 8000) == pytest.approx(pesq(speech, noisy, 8000), abs=0.05)


def test_stoi_is_the_package_s(speech: Tensor) -> None:
    """Tolerance 1e-9, because the package adds random rounding noise for ESTOI."""
    from pystoi import stoi as package

    noisy = degraded(speech)
    for extended in (False, True):
        expected = package(speech.numpy(), noisy.numpy(), 8000, extended=extended)
        assert (
            stoi(speech, noisy, 8000, extended) == pytest.approx(expected, abs=1e-9)
            and expected < 0.999
        )
        assert stoi(speech, speech, 8000, extended) == pytest.approx(1, abs=1e-9)
        assert stoi(speech, 3 * noisy, 8000, extended) == pytest.approx(expected, abs=1e-6)


def test_noise_above_the_band_is_not_seen(speech: Tensor) -> None:
    """A hiss from 9.5 kHz, as loud as the speech, hardly moves speech metrics.

    It moves them a little, because the steps at its ends have power at all frequencies.
    """
    wide = torch.from_numpy(resampled(speech.numpy(), 8000, 48000))
    spectrum = torch.fft.rfft(degraded(torch.zeros_like(wide), 1.0))
    spectrum[: int(len(wide) * 9500 / 48000)] = 0
    hiss = torch.fft.irfft(spectrum, len(wide))
    hissing = wide + hiss * (wide.norm() / hiss.norm())
    assert (
        band_verdict("pesq_wb", 9500, 48000).verdict
        == band_verdict("stoi", 9500, 48000).verdict
        == "refused"
    )
    assert pesq(wide, hissing, 48000) == pytest.approx(pesq(wide, wide, 48000), abs=0.1)
    assert stoi(wide, hissing, 48000) == pytest.approx(1, abs=1e-4)


def test_visqol_is_the_package_s(speech: Tensor) -> None:
    from visqol import VisqolApi

    noisy = degraded(speech)
    wide = [resampled(z.numpy(), 8000, 16000) for z in (speech, noisy)]
    scorer = VisqolApi()
    scorer.create(mode="speech", use_lattice_model=False)
    expected = scorer.measure_from_arrays(*wide, 16000).moslqo
    assert visqol(speech, noisy, 8000, "speech") == expected < 4.9


def test_visqol_audio_of_a_copy(speech: Tensor) -> None:
    second = speech[:8000]
    assert visqol(second, second, 8000) == pytest.approx(
        4.73, abs=0.02
    )  # the support vector model's highest


# Refusals


def test_pairs_that_cannot_be_scored_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import pesq as package

    x = degraded(torch.zeros(16000, dtype=torch.float64))
    for estimate, message in (
        (x / 0, "NaN"),
        (0 * x, "estimate is silent"),
        (x[None], "one channel"),
    ):
        for metric in (pesq, stoi, visqol):
            with pytest.raises(ValueError, match=message):
                metric(x, estimate, 16000)
    with pytest.raises(ValueError, match="different lengths"):
        stoi(x, x[:-5], 16000)
    for metric in (pesq, visqol):
        with pytest.raises(ValueError, match="NaN"):
            metric(x, torch.cat([x, x[:1] / 0]), 16000)
    for metric in (pesq, stoi, visqol):
        with pytest.raises(ValueError, match="too short"):
            metric(x[:2000], x[:2000], 16000)
        with pytest.raises(ValueError, match="reference is silent"):
            metric(0 * x, x, 16000)

    def fail(*_: object) -> float:
        raise package.NoUtterancesError(b"No utterances detected")

    monkeypatch.setattr(package, "pesq", fail)
    with pytest.raises(ValueError, match="PESQ cannot score this pair: No utterances"):
        pesq(x, x, 16000)
    burst = torch.cat([x[:3000], 0 * x])
    with pytest.raises(ValueError, match="30 frames"):
        stoi(burst, burst, 16000)
    for call in (lambda: pesq(x, x, 16000, "mb"), lambda: visqol(x, x, 16000, "music")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="mode must be"):
            call()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    x = degraded(torch.zeros(16000, dtype=torch.float64))
    for module, metric in (("pesq", pesq), ("pystoi", stoi)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            MissingPackageError, match=f"package {module} is not installed"
        ) as caught:
            metric(x, x, 16000)
        assert "stagecli[perceptual]" in caught.value.hint
        assert isinstance(caught.value, ModuleNotFoundError)
    assert set(TOP_HZ) == {"pesq_nb", "pesq_wb", "stoi", "estoi", "visqol_speech", "visqol_audio"}
