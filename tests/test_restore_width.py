"""Every restored file has noise of its own, and is as wide as what was kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_results import Cli, document, noise
from conftest import sha

from stagecli.data.audio import write_wav
from stagecli.generate.file_noise import FileNoise, square_root


def made(file: Path, cutoff: float = 4000) -> np.ndarray:
    """The band above a cutoff of a file at 16 kHz, [channels, N]."""
    audio, rate = soundfile.read(file, always_2d=True)
    spectrum = np.fft.rfft(audio.T)
    spectrum[:, np.fft.rfftfreq(len(audio), 1 / rate) < 1.05 * cutoff] = 0
    return np.fft.irfft(spectrum, len(audio))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_noise_of_a_file_does_not_depend_on_the_parts_it_is_drawn_in() -> None:
    file_noise = FileNoise(3, "a/b.wav", np.eye(2), 8)
    whole = file_noise.frames(0, 700)
    np.testing.assert_array_equal(file_noise.frames(300, 600), whole[:, 300:600])
    assert whole.shape == (2, 700, 8) and abs(whole.std() - 1) < 0.05
    for seed, name in ((4, "a/b.wav"), (3, "b.wav")):
        other = FileNoise(seed, name, np.eye(2), 8).frames(0, 700)
        assert abs(correlation(other.ravel(), whole.ravel())) < 0.1


@pytest.mark.parametrize("wanted", [-1.0, -0.4, 0.0, 0.6, 1.0])
def test_noise_of_channels_correlates_as_wanted(wanted: float) -> None:
    matrix = np.array([[1, wanted], [wanted, 1]])
    left, right = FileNoise(0, "a.wav", matrix, 64).frames(0, 500)
    assert correlation(left.ravel(), right.ravel()) == pytest.approx(wanted, abs=0.03)
    root = square_root(matrix)
    np.testing.assert_allclose(root @ root.T, matrix, atol=1e-9)


def test_files_of_a_folder_do_not_share_what_is_made_of_them(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """Shared noise gave different files one high band: its level correlated by .74."""
    for seed, name in enumerate(("a.wav", "b.wav", "sub/a.wav")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(tmp_path / "in" / name, noise(1.5, 8000, seed), 8000)
    assert len(document(cli("sample", "runs/sr", "-i", "in", "-o", "out", "--json"))) == 3
    bands = [made(tmp_path / "out" / name)[0] for name in ("a.wav", "b.wav", "sub/a.wav")]
    for i in range(3):
        assert abs(correlation(bands[i], bands[(i + 1) % 3])) < 0.1
    # A file of its own is restored as it is in its folder.
    assert cli("sample", "runs/sr", "-i", "in/a.wav", "-o", "one").code == 0
    assert sha(tmp_path / "one" / "a.wav") == sha(tmp_path / "out" / "a.wav")


@pytest.mark.parametrize("wanted", [-0.4, 0.0, 0.7])
def test_what_is_made_is_as_wide_as_the_kept_top_octave(
    wanted: float, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """Also where the bass is mono. It was almost mono whatever the input.

    The correlation of the noise is that of the octave; companding in the codec draws that of the
    audio towards 0 (.49 for .7, -.25 for -.4).
    """
    spectrum = np.fft.rfft(noise(2, 8000, 9))
    spectrum[2500:] = 0
    bass = np.fft.irfft(spectrum, 16000)
    left = noise(2, 8000, 1)
    right = wanted * left + np.sqrt(1 - wanted**2) * noise(2, 8000, 2)
    write_wav(tmp_path / "in.wav", np.stack([bass + left, bass + right], axis=1), 8000)
    assert cli("sample", "runs/sr", "-i", "in.wav", "-o", "out.wav").code == 0
    assert correlation(*made(tmp_path / "out.wav")) == pytest.approx(wanted, abs=0.25)


def test_equal_channels_stay_equal(cli: Cli, runs: Path, tmp_path: Path) -> None:
    left = noise(1, 8000)
    write_wav(tmp_path / "in.wav", np.stack([left, left], axis=1), 8000)
    assert cli("sample", "runs/sr", "-i", "in.wav", "-o", "out.wav").code == 0
    one, other = made(tmp_path / "out.wav")
    np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
