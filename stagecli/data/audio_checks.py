"""Why an audio file is unusable: damage, truncation, silence, a low sample rate. No torch."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

# Peak of the mono mix; below the smallest 16-bit value (3e-5), above the rounding of antiphase.
SILENCE = 2e-5
_SILENT = "is silent"
# Peak of the mono mix of float audio above which its scale is that of integers: a loud float file
# may pass full scale (1.0), but not by 12 dB.
LARGEST_PEAK = 4.0
# Frames decoded at once while checking, so that hour-long files need little memory.
BLOCK = 1 << 18
# libsndfile reports a frame count above this for a stream whose header states no length.
UNKNOWN_LENGTH = 1 << 62


@dataclass(frozen=True)
class AudioInfo:
    """Format of an audio file. sample_rate: Hz; frames: samples per channel.

    peak: of the mono mix, where the file was decoded (full scale is 1).
    """

    sample_rate: int
    frames: int
    channels: int
    peak: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


@contextmanager
def open_audio(audio: Path | bytes) -> Iterator[Any]:
    """A `soundfile.SoundFile` of a file or of its bytes. Raises OSError, SoundFileError."""
    source = str(audio) if isinstance(audio, Path) else io.BytesIO(audio)
    with soundfile.SoundFile(source) as file:
        yield file


def check_content(audio: Path | bytes) -> tuple[AudioInfo | None, str | None]:
    """Format of a file or of its bytes, and why it is unusable at any sample rate (or None).

    Decodes everything. The result depends on the content alone, so it can be remembered. Raises
    OSError where the file system fails.
    """
    # Damage that libsndfile hides.
    with open(audio, "rb") if isinstance(audio, Path) else io.BytesIO(audio) as raw:
        size = raw.seek(0, os.SEEK_END)
        if size == 0:
            return None, "file is empty"
        truncation = _truncation(raw, size)

    # Damage that decoding reveals.
    try:
        with open_audio(audio) as file:
            stated = int(file.frames)
            frames, peak, finite = _scan(file)
            info = AudioInfo(int(file.samplerate), frames, int(file.channels), peak)
    except soundfile.SoundFileError as error:
        return None, truncation or f"is not audio, or is damaged: {decoding_problem(error)}"

    # The samples themselves.
    problem = truncation
    if problem is None and frames < stated < UNKNOWN_LENGTH:
        problem = f"is truncated: {frames} of {stated} frames can be decoded"
    elif problem is None and frames == 0:
        problem = "holds no samples"
    elif problem is None and not finite:
        problem = "holds NaN or infinite samples"
    elif problem is None and peak < SILENCE:
        problem = f"{_SILENT} (peak of the mono mix {peak:.1g})"
    return info, problem


def is_silent(problem: str) -> bool:
    """Whether a problem of `check_content` is only that the audio is silent."""
    return problem.startswith(_SILENT)


def too_low(info: AudioInfo | None, sample_rate: int) -> str | None:
    """The problem if the file's rate is below the recipe's: upsampled audio has an empty band."""
    if info is None or info.sample_rate >= sample_rate:
        return None
    return f"sample rate {info.sample_rate} Hz is below the recipe's {sample_rate} Hz"


def wrong_scale(info: AudioInfo | None) -> str | None:
    """The problem if samples are far above full scale, as in a float file of 16-bit integers."""
    if info is None or info.peak <= LARGEST_PEAK:
        return None
    return f"peaks at {info.peak:.6g} times full scale: its samples must lie between -1 and 1"


def file_problem(error: OSError) -> str:
    """An error of the file system as a problem; it tells nothing about the content."""
    if isinstance(error, FileNotFoundError):
        return "file is missing"
    return f"cannot be read: {error.strerror}"


def decoding_problem(error: Exception) -> str:
    """First line of libsndfile's message, without the path that is printed beside it."""
    lines = str(error).splitlines() or [type(error).__name__]
    if "does not exist" in lines[0]:  # mpg123's message for a file without a single frame
        return "no frame can be decoded"
    return lines[0].rsplit(": ", 1)[-1].rstrip(".")


def _scan(file: Any) -> tuple[int, float, bool]:
    """(frames that decode, peak of the mono mix, whether every sample is finite)."""
    frames = 0
    peak = 0.0
    while True:
        block_NC = file.read(BLOCK, dtype="float32", always_2d=True)
        if len(block_NC) == 0:
            return frames, peak, True
        frames += len(block_NC)
        if not np.isfinite(block_NC).all():
            return frames + max(0, int(file.frames) - frames), peak, False
        peak = max(peak, float(np.abs(block_NC.mean(axis=1)).max()))


def _truncation(raw: BinaryIO, size: int) -> str | None:
    """Truncation that libsndfile hides, because it takes the length from the file, not the header.

    For WAV, RF64, AIFF and Ogg; FLAC, MP3 and CAF reveal it when decoded.
    """
    raw.seek(0)
    magic = raw.read(12)
    if magic[:4] == b"OggS":
        return _ogg_truncation(raw, size)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
        return _chunk_truncation(raw, size, "<", b"data")
    if magic[:4] == b"FORM" and magic[8:11] == b"AIF":
        return _chunk_truncation(raw, size, ">", b"SSND")
    return None


def _chunk_truncation(raw: BinaryIO, size: int, order: str, name: bytes) -> str | None:
    """The problem if chunk `name` of a RIFF or IFF file promises more bytes than the file has."""
    position = 12
    length_64 = 0
    while position + 8 <= size:
        raw.seek(position)
        tag, length = struct.unpack(f"{order}4sI", raw.read(8))
        position += 8
        if tag == b"ds64":  # RF64 (EBU Tech 3306): the length of a file above 4 GiB
            length_64 = struct.unpack("<8xQ", raw.read(16).ljust(16, b"\0"))[0]
        if tag == name:
            length = length_64 or length
            # A writer to a pipe does not know the length and leaves 0 or nearly the largest value.
            stated = bool(length_64) or length < 0x7FFFF000
            if stated and length > size - position:
                return f"is truncated: {size - position} of {length} bytes of audio are present"
            return None
        position += length + length % 2
    return "is truncated: it ends before its audio"


def _ogg_truncation(raw: BinaryIO, size: int) -> str | None:
    """The problem if the last Ogg page is cut off or not the last of its stream (RFC 3533)."""
    window = min(size, 1 << 17)  # a page has at most 65307 bytes
    raw.seek(size - window)
    tail = raw.read(window)
    start = tail.rfind(b"OggS")
    page = tail[start:] if start >= 0 else b""
    segments = page[26] if len(page) > 26 else 0
    if len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments]):
        return "is truncated: its last Ogg page is cut off"
    is_last = bool(page[5] & 4)
    return None if is_last else "is truncated: its Ogg stream has no last page"
