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

from stagecli.errors import EXIT_FAILED, Problem, StageError, among, significant
from stagecli.files import JsonRow, number, read_json_lines, write_atomic
from stagecli.generate.encoding import HELD, Encoding, nearest_folder
from stagecli.targets import cannot_write

LISTING = "samples.jsonl"
LEVELS = ("peak", "gain_db")  # what it records of each file
CEILING = 10 ** (-1 / 20)  # -1 dBFS, of a full scale of 1
FLOAT_WAV = Encoding()


def write_listening(
    path: Path,
    audio: np.ndarray,
    sample_rate: int,
    *,
    beside: Sequence[np.ndarray] = (),
    write: Callable[[Path, bytes], None] = write_atomic,
    encoding: Encoding = FLOAT_WAV,
) -> JsonRow:
    """Write audio [N] or [N, channels], turned down if its peak is above -1 dBFS.

    beside: audio that it will be compared with by ear, and that therefore gets the same gain;
    write: puts the bytes at the path; encoding: of the file. Returns what its row in samples.jsonl
    records: `peak`, before the gain, and `gain_db`, 0 or less. Raises StageError for NaN and
    infinite values.
    """
    audio_NC = audio[:, None] if audio.ndim == 1 else audio
    peak = _finite_peak(audio_NC, path)
    loudest = max(peak, *map(_peak, beside)) if beside else peak
    gain = CEILING / loudest if CEILING < loudest < math.inf else 1.0
    quiet_NC = _turned_down(audio_NC, gain)
    write(path, b"".join(encoding.pieces([quiet_NC], quiet_NC.shape, sample_rate, path=path)))
    return {"peak": peak, "gain_db": 20 * math.log10(gain)}


def write_long_listening(
    path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    sample_rate: int,
    *,
    write: Callable[[Path, Iterable[bytes]], None],
    encoding: Encoding = FLOAT_WAV,
) -> JsonRow:
    """`write_listening` for audio of any length, in blocks [n, channels] of `shape` in all.

    The gain is known at the end only: until then the audio is in a nameless file beside `path`.
    """
    peak = 0.0
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(path)) as held:
            for block_NC in blocks:
                peak = max(peak, _finite_peak(block_NC, path))
                held.write(np.asarray(block_NC, "<f4").tobytes())
            gain = CEILING / peak if peak > CEILING else 1.0
            held.seek(0)
            quiet = (_turned_down(block_NC, gain) for block_NC in _blocks(held, shape[1]))
            write(path, encoding.pieces(quiet, shape, sample_rate, path=path))
    except OSError as error:
        raise cannot_write(path, error) from error
    return {"peak": peak, "gain_db": 20 * math.log10(gain)}


def _blocks(held: IO[bytes], channels: int) -> Iterator[np.ndarray]:
    """Blocks [n, channels] of the float audio in a file."""
    frame = 4 * channels
    while data := held.read(HELD // frame * frame):
        yield np.frombuffer(data, "<f4").reshape(-1, channels)


def _turned_down(audio: np.ndarray, gain: float) -> np.ndarray:
    if gain == 1:
        return audio
    scaled = np.asarray(audio, dtype=np.float64) * gain
    return np.clip(scaled, -CEILING, CEILING)  # what rounding may add


def _finite_peak(audio: np.ndarray, path: Path) -> float:
    if not np.isfinite(audio).all():
        raise StageError(
            f"cannot write {path.name}",
            problems=[Problem(str(path), "audio has NaN or infinite samples")],
            exit_code=EXIT_FAILED,
        )
    return _peak(audio)


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
