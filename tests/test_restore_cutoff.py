"""The cutoff of an input: where a filter starts to cut it, and not where it sinks into noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_results import Cli, document, noise
from scipy import signal

from stagecli.data.audio import write_wav
from stagecli.data.bandwidth import cutoff_of


def cutoff(audio: np.ndarray, rate: int) -> float:
    return cutoff_of([audio[:, None].astype(np.float32)], rate)


def in_16_bits(audio: np.ndarray) -> np.ndarray:
    return np.rint(audio * 32768) / 32768


def pink(seconds: float, rate: int) -> np.ndarray:
    """Pink noise with a peak of 1."""
    count = int(seconds * rate)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(count))
    audio = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), count)
    return audio / np.abs(audio).max()


def sharp(factor: int) -> np.ndarray:
    """A filter as sharp as soxr's: flat to 0.91 of the lower Nyquist frequency, closed above it."""
    return signal.firwin(factor * 600 + 1, 0.956 / factor, window=("kaiser", 12))


@pytest.mark.parametrize("order", [4, 6])
@pytest.mark.parametrize("hertz", [80, 150, 400])
def test_dark_drums_have_not_been_cut(hertz: float, order: int) -> None:
    """They were taken to end at some hundred Hz, where they sink into the rounding noise."""
    rate = 24000
    seconds = np.arange(3 * rate) / rate
    hits = np.random.default_rng(1).standard_normal(len(seconds)) * np.exp(-20 * (seconds % 0.5))
    drums = signal.sosfilt(signal.butter(order, hertz, fs=rate, output="sos"), hits)
    drums *= 0.5 / np.abs(drums).max()
    assert cutoff(in_16_bits(drums), rate) == rate / 2
    assert cutoff(drums, rate) == rate / 2


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_the_cutoff_is_where_the_slope_of_a_resampler_starts(factor: int) -> None:
    """It was put where nothing is left, which made a hole of 50 dB below the splice."""
    rate = 8000 * factor
    audio = signal.resample_poly(pink(3, 8000), factor, 1, window=sharp(factor))
    hertz = cutoff(audio, rate)
    _, response = signal.freqz(sharp(factor), worN=[0.99 * hertz], fs=rate)
    assert 20 * np.log10(np.abs(response[0])) > -6
    assert hertz > 3600


@pytest.mark.parametrize("gain_db", [-20, -30, -40])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_quiet_16_bit_file_is_not_full_band(rate: int, gain_db: float) -> None:
    factor = rate // 8000
    audio = signal.resample_poly(pink(3, 8000), factor, 1, window=sharp(factor))
    audio = in_16_bits(audio * 10 ** (gain_db / 20))
    assert 3600 < cutoff(audio, rate) < 4000


@pytest.mark.parametrize("gain_db", [0, -40])
def test_noise_that_nothing_has_cut_has_no_cutoff(gain_db: float) -> None:
    gain = 10 ** (gain_db / 20)
    for audio in (pink(2, 16000), noise(2, 16000)):
        assert cutoff(in_16_bits(gain * audio), 16000) == 8000


def test_blocks_and_silent_channels_make_no_difference() -> None:
    audio = signal.resample_poly(pink(9, 8000), 2, 1, window=sharp(2)).astype(np.float32)
    stereo = np.stack([audio, 0 * audio], axis=1)
    whole = cutoff_of([stereo], 16000)
    assert whole < 4000
    assert cutoff_of(np.array_split(stereo, 37), 16000) == whole
    assert cutoff_of([0 * stereo], 16000) == cutoff_of([], 16000) == 8000


def test_a_file_below_the_trained_range_is_skipped_and_named(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write_wav(tmp_path / "in" / "dark.wav", noise(0.3, 2000), 2000)
    alone = cli("sample", "runs/sr", "--input", "in", "-o", "out")
    assert alone.code == 2 and "--cutoff" in alone.stderr and not (tmp_path / "out").exists()
    write_wav(tmp_path / "in" / "fine.wav", noise(0.3, 8000), 8000)
    both = cli("sample", "runs/sr", "--input", "in", "-o", "out", "--json")
    assert [row["path"] for row in document(both)] == ["fine.wav"]
    assert both.stderr.count("skipped") == 1 and "in/dark.wav" in both.stderr
    assert not (tmp_path / "out" / "dark.wav").exists()
