"""Audio files in and out: nothing clips, nothing aliases, nothing is half written."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stagecli.data.audio import read_mono, write_wav
from stagecli.data.audio_checks import check_content, too_low
from stagecli.data.decoding import AudioInfo
from stagecli.errors import StageError

RATE = 16000


def tone(seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(3200)).astype(np.float32)


def test_written_audio_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    loud_NC = np.stack([3 * tone(), tone(seed=1)], 1)
    write_wav(path, 10 * loud_NC, RATE)
    assert soundfile.info(path).channels == 2
    assert np.array_equal(soundfile.read(path, dtype="float32")[0], 10 * loud_NC)
    first = path.read_bytes()
    write_wav(path, 10 * loud_NC, RATE)
    assert path.read_bytes() == first
    with pytest.raises(StageError, match="would clip"):
        write_wav(path, 10 * loud_NC, RATE, "PCM_16")
    with pytest.raises(StageError, match="NaN"):
        write_wav(path, np.array([np.nan]), RATE)
    assert path.read_bytes() == first
    write_wav(path, np.append(tone(), [1.0, -1.0]), RATE, "PCM_16")
    assert np.abs(read_mono(path, RATE)[:-2] - tone()).max() <= 0.5 / 32768
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    with pytest.raises(StageError, match="file is missing"):
        read_mono(tmp_path / "b.wav", RATE)


def test_checks_of_a_good_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(), RATE)
    info = AudioInfo(sample_rate=RATE, frames=3200, channels=1)
    for audio in (tmp_path / "a.wav", (tmp_path / "a.wav").read_bytes()):
        checked, problem = check_content(audio)
        assert checked is not None
        assert replace(checked, peak=0.0, rms=0.0) == info
        assert checked.peak == pytest.approx(float(np.abs(tone()).max()), abs=1e-4)
        assert problem is None
    assert too_low(info, RATE) is None
    assert "below the recipe's" in str(too_low(info, 2 * RATE))
    with pytest.raises(FileNotFoundError):
        check_content(tmp_path / "b.wav")


def test_a_wav_of_unstated_length_is_not_truncated(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    write_wav(path, tone(), RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert check_content(path)[1] is None


@pytest.mark.parametrize("kind", ["RF64", "CAF"])
def test_truncation_in_rarer_containers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(), RATE, format=kind, subtype="PCM_16")
    assert check_content(path)[1] is None
    path.write_bytes(path.read_bytes()[:4000])
    problem = str(check_content(path)[1])
    assert "is truncated" in problem or "damaged" in problem
