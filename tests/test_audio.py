"""Audio files in and out: nothing clips, nothing aliases, nothing is half written."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stagecli.data.audio import check_audio, probe, read_mono, resample, write_wav
from stagecli.errors import StageError

RATE = 16000


def tone(seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(3200)).astype(np.float32)


def test_written_audio_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    loud_NC = np.stack([3 * tone(), tone(seed=1)], 1)
    write_wav(path, 10 * loud_NC, RATE)
    assert probe(path).channels == 2
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
    with pytest.raises(StageError, match="file is missing"):
        probe(tmp_path / "b.wav")


def test_check_audio_of_a_good_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(), RATE)
    assert check_audio(tmp_path / "a.wav", RATE) is None
    assert check_audio((tmp_path / "a.wav").read_bytes(), RATE) is None
    assert "below the recipe's" in str(check_audio(tmp_path / "a.wav", 2 * RATE))
    assert check_audio(tmp_path / "b.wav", RATE) == "file is missing"


@pytest.mark.parametrize(
    ("rate", "to"), [(44100, 16000), (16000, 44100), (48000, 44100), (22050, 8000)]
)
def test_resampling_keeps_tones_and_removes_what_would_alias(rate: int, to: int) -> None:
    time_N = np.arange(rate) / rate
    kept = 0.4 * min(rate, to)
    tone_N = resample(np.sin(2 * np.pi * kept * time_N), rate, to)
    expected = np.sin(2 * np.pi * kept * np.arange(to) / to)
    assert len(tone_N) == to
    assert np.abs(tone_N - expected)[1000:-1000].max() < 1e-3
    if rate > to:
        alias = resample(np.sin(2 * np.pi * 0.53 * to * time_N), rate, to)
        assert np.abs(alias)[1000:-1000].max() < 2e-4


def test_a_wav_of_unstated_length_is_not_truncated(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    write_wav(path, tone(), RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert check_audio(path, RATE) is None


@pytest.mark.parametrize("kind", ["RF64", "CAF"])
def test_truncation_in_rarer_containers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(), RATE, format=kind, subtype="PCM_16")
    assert check_audio(path, RATE) is None
    path.write_bytes(path.read_bytes()[:4000])
    assert "is truncated" in str(check_audio(path, RATE)) or "damaged" in str(
        check_audio(path, RATE)
    )
