"""The gain of a pair is that of the band both share, whatever lies above it and however late."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_results import Cli, document
from torch import Tensor

from stagecli.data.audio import write_wav
from stagecli.metrics.gain import apply_gain, pair_gain
from stagecli.metrics.spectral import lsd

RATE = 16000
CUTOFF = 4000.0
GAIN = 1.6468


def banded(seed: int, low: float, high: float, size: int = 2 * RATE) -> np.ndarray:
    """Noise between two frequencies in Hz."""
    spectrum = np.fft.rfft(0.1 * np.random.default_rng(seed).standard_normal(size))
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    spectrum[(hertz < low) | (hertz >= high)] = 0
    return np.fft.irfft(spectrum, size)


def late(audio: np.ndarray, samples: float) -> np.ndarray:
    """The same audio, later by a number of samples that need not be whole."""
    omega = 2 * np.pi * np.arange(len(audio) // 2 + 1) / len(audio)
    return np.fft.irfft(np.fft.rfft(audio) * np.exp(-1j * omega * samples), len(audio))


@pytest.fixture
def reference() -> np.ndarray:
    return banded(0, 0, CUTOFF) + banded(1, CUTOFF, RATE / 2)


@pytest.fixture
def estimate() -> np.ndarray:
    """The kept band of the reference under a high band of its own, too quiet by a known gain."""
    return (banded(0, 0, CUTOFF) + banded(2, CUTOFF, RATE / 2)) / GAIN


def tensor(audio: np.ndarray) -> Tensor:
    return torch.from_numpy(audio)


@pytest.mark.parametrize("delay", [0.0, 3.0, -7.4, 250.0])
def test_the_known_gain_of_a_pair_is_found(
    delay: float, reference: np.ndarray, estimate: np.ndarray
) -> None:
    found = pair_gain(tensor(reference), tensor(late(estimate, delay)), RATE, CUTOFF)
    assert found.kept == pytest.approx(GAIN, rel=0.015)
    assert found.delay * RATE == pytest.approx(delay, abs=0.02)
    assert found.whole < 0.6 * GAIN, "content of another phase and a delay lower it"


def test_a_matched_gain_improves_the_distance(reference: np.ndarray, estimate: np.ndarray) -> None:
    x = tensor(reference)
    y = tensor(estimate)
    right = float(lsd(x, GAIN * y, RATE))
    found = pair_gain(x, y, RATE, CUTOFF)
    matched = float(lsd(x, apply_gain(y, found.kept), RATE))
    assert matched == pytest.approx(right, abs=0.005)
    assert matched < float(lsd(x, y, RATE)) < float(lsd(x, apply_gain(y, found.whole), RATE))


def test_an_inverted_and_a_silent_estimate(reference: np.ndarray) -> None:
    x = tensor(reference)
    assert pair_gain(x, -x, RATE, CUTOFF).kept == pytest.approx(-1)
    assert pair_gain(x, 0 * x, RATE, CUTOFF).kept == 1
    assert not math.isnan(pair_gain(x, torch.ones_like(x), RATE, CUTOFF).kept)


def test_both_gains_are_printed(
    cli: Cli, tmp_path: Path, reference: np.ndarray, estimate: np.ndarray
) -> None:
    for folder, audio in (("real", reference), ("made", estimate)):
        (tmp_path / folder).mkdir()
        write_wav(tmp_path / folder / "a.wav", audio, RATE)
    command = ("evaluate", "--reference", "real", "--generated", "made", "--task", "sr")
    command = (*command, "--cutoff", "4000", "--json")
    plain = cli(*command)
    matched = cli(*command, "--match-gain")
    wanted = f"{20 * math.log10(GAIN):.1f}"
    assert f"off by about -{wanted} dB in the kept band (sample by sample" in plain.stderr
    assert f"median +{20 * math.log10(GAIN):.2f} dB" in matched.stderr
    assert "over the whole band it would have been median" in matched.stderr
    scores = [document(result)["rows"][0]["metrics"]["lsd"]["value"] for result in (plain, matched)]
    assert scores[1] < scores[0]
