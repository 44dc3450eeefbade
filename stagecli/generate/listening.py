"""Audio for people to listen to: never louder than -1 dBFS, whatever a model has generated.

What was applied stands in samples.jsonl, so that measurements can undo it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stagecli.data.audio import wav_bytes
from stagecli.errors import among
from stagecli.files import JsonRow, number, read_json_lines, write_atomic

LISTING = "samples.jsonl"
LEVELS = ("peak", "gain_db")  # what it records of each file
CEILING = 10 ** (-1 / 20)  # -1 dBFS, of a full scale of 1


def write_listening(
    path: Path,
    audio: np.ndarray,
    sample_rate: int,
    *,
    beside: Sequence[np.ndarray] = (),
    write: Callable[[Path, bytes], None] = write_atomic,
) -> JsonRow:
    """Write audio [N] or [N, channels] as float WAV, turned down if its peak is above -1 dBFS.

    beside: audio that it will be compared with by ear, and that therefore gets the same gain;
    write: puts the bytes at the path. Returns what its row in samples.jsonl records: `peak`, before
    the gain, and `gain_db`, 0 or less. Raises StageError for NaN and infinite values.
    """
    peak = _peak(audio)
    loudest = max(peak, *map(_peak, beside)) if beside else peak
    gain = CEILING / loudest if CEILING < loudest < math.inf else 1.0
    quiet = audio
    if gain < 1:
        scaled = np.asarray(audio, dtype=np.float64) * gain
        quiet = np.clip(scaled, -CEILING, CEILING)  # what rounding may add
    write(path, wav_bytes(quiet, sample_rate, name=str(path)))
    return {"peak": peak, "gain_db": 20 * math.log10(gain)}


def loudness_note(rows: Sequence[JsonRow]) -> str | None:
    """One line that says how many of the files were turned down and by how much; None: none."""
    gains = [row["gain_db"] for row in rows if row["gain_db"] < 0]
    if not gains:
        return None
    peak = max(row["peak"] for row in rows)
    return (
        f"{among(len(gains), len(rows), 'file', 'was', 'were')} turned down by up to "
        f"{-min(gains):.1f} dB to peak at -1 dBFS (highest peak before: {peak:.3g} times full "
        f"scale); see gain_db in {LISTING}"
    )


def recorded_gains(folder: Path) -> dict[str, float]:
    """Factors by which files of a folder were turned down, by path; without those that were not."""
    listing = folder / LISTING
    if not listing.is_file():
        return {}
    gains = {}
    for _, row in read_json_lines(listing):
        decibels = number(row.get("gain_db")) if isinstance(row, dict) else None
        if decibels is not None and decibels < 0 and isinstance(row.get("path"), str):
            gains[row["path"]] = 10 ** (decibels / 20)
    return gains


def _peak(audio: np.ndarray) -> float:
    return float(np.abs(audio).max(initial=0.0))
