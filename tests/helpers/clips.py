"""Small data sets of recorded noise, written to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16000


def noise(number: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    """White noise [N] of RMS 0.1, different for each number."""
    return 0.1 * np.random.default_rng(number).standard_normal(round(seconds * rate))


def resampled_up(audio_N: np.ndarray, factor: int) -> np.ndarray:
    """Audio at `factor` times its rate, ideally resampled: nothing above its old Nyquist."""
    spectrum_F = np.zeros(factor * len(audio_N) // 2 + 1, dtype=complex)
    spectrum_F[: len(audio_N) // 2] = factor * np.fft.rfft(audio_N)[: len(audio_N) // 2]
    return np.fft.irfft(spectrum_F)


def write_clips(
    folder: Path, audio: Mapping[str, np.ndarray], subtype: str = "PCM_16", rate: int = RATE
) -> None:
    """Write `{"a.wav": samples}` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio_N in audio.items():
        soundfile.write(folder / name, audio_N, rate, subtype=subtype)


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """`manifest.jsonl` in a folder."""
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The rows of `write_manifest`."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def write_data_set(
    folder: Path, train: int = 8, valid: int = 3, rate: int = RATE
) -> list[dict[str, Any]]:
    """Clips of noise with captions and a manifest; returns its rows."""
    splits = ["train"] * train + ["valid"] * valid + ["test"] * 2
    rows = [
        {"path": f"{k}.wav", "caption": f"noise number {k}", "split": split}
        for k, split in enumerate(splits)
    ]
    write_clips(folder, {row["path"]: noise(k, rate=rate) for k, row in enumerate(rows)}, rate=rate)
    write_manifest(folder, rows)
    return rows
