"""Files of any length are restored in memory that does not grow with it, without a seam."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_results import Cli, noise

from stagecli.data import decoding
from stagecli.data.audio import wav_bytes, wav_header, write_wav
from stagecli.dsp import resample as resampling
from stagecli.dsp.blocks import joined, overlapping, part_lengths
from stagecli.dsp.resample import resample, resample_blocks
from stagecli.generate import restore
from stagecli.generate.output import Destination


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 160, 161, 1234])
def test_overlapping_parts_make_one_signal_again(length: int) -> None:
    audio = np.random.default_rng(0).standard_normal((length, 2)).astype(np.float32)
    parts = list(overlapping(np.array_split(audio, 7), 100, 60))
    assert [len(part) for part in parts] == part_lengths(length, 100, 60)
    whole = np.concatenate([np.zeros((0, 2)), *joined(parts, 40, 10)])
    np.testing.assert_allclose(whole, audio, atol=1e-6)


def test_a_crossfade_leaves_out_the_margins_of_a_part() -> None:
    parts = [np.full((100, 1), value, np.float32) for value in (1, 2)]
    whole = np.concatenate(list(joined(parts, 40, 10)))[:, 0]
    assert len(whole) == 160
    assert (whole[:70] == 1).all() and (whole[90:] == 2).all() and (np.diff(whole) >= 0).all()


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (11025, 44100), (48000, 48000)])
@pytest.mark.parametrize("length", [1, 5000, 40000])
def test_resampling_in_blocks_gives_the_same_values(
    rates: tuple[int, int], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "PART", 3000)
    audio = noise(length, 1)
    blocks = np.array_split(audio[:, None], 11)
    whole = np.concatenate(list(resample_blocks(blocks, *rates)))[:, 0]
    np.testing.assert_allclose(whole, resample(audio, *rates), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wav_file_in_pieces_is_the_same_file(channels: int) -> None:
    audio = noise(0.1 * channels, 8000).reshape(-1, channels)
    pieces = wav_header(audio.shape, 8000, name="a.wav") + audio.astype("<f4").tobytes()
    assert pieces == wav_bytes(audio, 8000, name="a.wav")


def restored(runs: Path, source: Path, output: Path) -> np.ndarray:
    silent = Destination(output=output, force=True, warn=lambda _: None, note=lambda _: None)
    restore.restore_files(runs / "sr", source, silent, seed=0)
    return soundfile.read(output, dtype="float32")[0]


def test_parts_join_without_a_seam(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the file restored as one: almost the same, also where parts meet."""
    write_wav(tmp_path / "in.wav", noise(4, 8000), 8000)
    parts = restored(runs, tmp_path / "in.wav", tmp_path / "parts.wav")
    monkeypatch.setattr(restore, "WINDOWS", 1000)
    whole = restored(runs, tmp_path / "in.wav", tmp_path / "whole.wav")
    assert len(parts) == len(whole) == 4 * 16000
    error = (parts - whole).reshape(-1, 800)
    assert (np.std(error, axis=1) < 0.1 * np.std(whole)).all()


def test_memory_does_not_grow_with_the_length(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grew by 4.2 MB a second."""
    monkeypatch.setattr(decoding, "BLOCK", 8192)
    monkeypatch.setattr(resampling, "PART", 8192)
    peaks = []
    for seconds in (1, 10, 20):  # the first fills the caches
        write_wav(tmp_path / "in.wav", noise(seconds, 8000), 8000)
        tracemalloc.start()
        restored(runs, tmp_path / "in.wav", tmp_path / "out.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # `restored` itself reads the result: 0.64 MB more.
    assert peaks[2] - peaks[1] < 1.5e6


def test_a_loud_result_peaks_at_minus_1_dbfs_and_says_so(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in.wav", 30 * noise(3, 8000), 8000)
    result = cli("sample", "runs/sr", "-i", "in.wav", "-o", "out.wav", "--json")
    assert result.code == 0 and "turned down" in result.stderr
    audio, _ = soundfile.read(tmp_path / "out.wav")
    assert np.abs(audio).max() == pytest.approx(10 ** (-1 / 20), rel=1e-6)
