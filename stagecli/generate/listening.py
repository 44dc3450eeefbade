"""Audio for people to listen to: never louder than -1 dBFS, whatever a model has generated.

What was applied stands in samples.jsonl, so that measurements can undo it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from stagecli.data.audio import wav_bytes, wav_header
from stagecli.errors import EXIT_FAILED, Problem, StageError, among, significant
from stagecli.files import JsonRow, number, read_json_lines, write_atomic
from stagecli.targets import cannot_write

LISTING = "samples.jsonl"
LEVELS = ("peak", "gain_db")  # what it records of each file
HELD = 1 << 20  # bytes of a temporary file that are read at once
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


def write_long_listening(
    path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    sample_rate: int,
    *,
    write: Callable[[Path, Iterable[bytes]], None],
) -> JsonRow:
    """`write_listening` for audio of any length, in blocks [n, channels] of `shape` in all.

    The gain is known at the end only: until then the audio is in a nameless file beside `path`.
    """
    header = wav_header(shape, sample_rate, name=str(path))
    peak = 0.0
    try:
        with tempfile.TemporaryFile(dir=_nearest_folder(path)) as held:
            for block_NC in blocks:
                peak = max(peak, _finite_peak(block_NC, path))
                held.write(np.asarray(block_NC, "<f4").tobytes())
            gain = CEILING / peak if peak > CEILING else 1.0
            held.seek(0)
            write(path, _turned_down(header, held, gain))
    except OSError as error:
        raise cannot_write(path, error) from error
    return {"peak": peak, "gain_db": 20 * math.log10(gain)}


def _turned_down(header: bytes, held: IO[bytes], gain: float) -> Iterator[bytes]:
    yield header
    while data := held.read(HELD):
        if gain < 1:
            scaled = np.frombuffer(data, "<f4").astype(np.float64) * gain
            data = np.clip(scaled, -CEILING, CEILING).astype("<f4").tobytes()
        yield data


def _finite_peak(audio: np.ndarray, path: Path) -> float:
    if not np.isfinite(audio).all():
        raise StageError(
            f"cannot write {path.name}",
            problems=[Problem(str(path), "audio has NaN or infinite samples")],
            exit_code=EXIT_FAILED,
        )
    return _peak(audio)


def _nearest_folder(path: Path) -> Path:
    """The folder of `path`, or the first above it that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def loudness_note(rows: Sequence[JsonRow]) -> str | None:
    """One line that says how many of the files were turned down and by how much; None: none."""
    gains = [row["gain_db"] for row in rows if row["gain_db"] < 0]
    if not gains:
        return None
    peak = max(row["peak"] for row in rows)
    return (
        f"{among(len(gains), len(rows), 'file', 'was', 'were')} turned down by up to "
        f"{-min(gains):.1f} dB to peak at -1 dBFS (highest peak before: "
        f"{significant(peak, 3)} times full scale); see gain_db in {LISTING}"
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
