"""Decodes audio: the check and every read go through `open_audio`, and see the same samples.

What soundfile raises, and damage that libsndfile hides, is one exception here. What libsndfile does
not read goes through the program `ffmpeg`. No torch.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stagecli.data.containers import container_problem
from stagecli.data.ffmpeg import decoded, foreign_format
from stagecli.data.mp3 import count_frames
from stagecli.data.undecodable import UndecodableError

# Values decoded at once, so that hour-long files need little memory.
BLOCK = 1 << 18
# libsndfile reports a length above this for a stream whose header states none.
UNKNOWN_LENGTH = 1 << 62
# Hz. Another rate is damage, and resampling it would need terabytes.
SAMPLE_RATES = (1_000, 384_000)


@dataclass(frozen=True)
class AudioInfo:
    """Format of audio that was decoded.

    sample_rate: Hz; frames: samples per channel; peak, rms: of the mono mix (full scale is 1).
    """

    sample_rate: int
    frames: int
    channels: int
    peak: float = 0.0
    rms: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


class _SoundFile(soundfile.SoundFile):
    """Read from start to end: seeking after each block fails where the length is unknown."""

    def seekable(self) -> bool:
        return False


class AudioStream:
    """Open audio, from `open_audio`.

    sample_rate: Hz; num_samples: per channel, None where the length is not stated.
    """

    def __init__(self, file: Any, num_samples: int | None) -> None:
        self._file = file
        self.sample_rate = int(file.samplerate)
        self.channels = int(file.channels)
        self.num_samples = num_samples

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples in order, as float32 [n, channels].

        Raises UndecodableError where decoding fails, or ends before the stated length.
        """
        size = max(1, BLOCK // self.channels)
        decoded = 0
        while self.num_samples is None or decoded < self.num_samples:
            left = size if self.num_samples is None else min(size, self.num_samples - decoded)
            with _one_exception():
                block_NC = self._file.read(left, dtype="float32", always_2d=True)
            if len(block_NC) == 0:
                break
            decoded += len(block_NC)
            yield block_NC
        if self.num_samples is not None and decoded < self.num_samples:
            raise UndecodableError(
                f"is truncated: {decoded} of {self.num_samples} samples can be decoded"
            )


@contextmanager
def open_audio(audio: Path | bytes) -> Iterator[AudioStream]:
    """Audio of a file or of its bytes, ready to be decoded.

    Raises UndecodableError: no audio, damage, no regular file; OSError where the file system fails.
    """
    # Damage that libsndfile hides.
    with _one_exception():
        if isinstance(audio, Path):
            _require_regular(audio)
        with open(audio, "rb") if isinstance(audio, Path) else io.BytesIO(audio) as raw:
            kind = foreign_format(raw)
            problem = None if kind else container_problem(raw)
    if problem:
        raise UndecodableError(problem)
    if kind:
        with decoded(audio, kind) as piped:
            _require_rate(piped.samplerate)
            yield AudioStream(piped, None)
        return

    # The stream, and the length that it should have.
    with _one_exception():
        file = _SoundFile(str(audio) if isinstance(audio, Path) else io.BytesIO(audio))
    with file:
        _require_rate(file.samplerate)
        if not file.subtype.startswith("MPEG"):
            yield AudioStream(file, _stated_length(file))
            return
        container = file.format
    with _counted_mpeg(audio, container) as stream:
        yield stream


@contextmanager
def _counted_mpeg(audio: Path | bytes, container: str) -> Iterator[AudioStream]:
    """MPEG audio with its length counted, because its container only estimates it."""
    if container != "MP3":
        raise UndecodableError(
            f"holds MPEG audio in a {container} container, which states no length: "
            "decode it and save it as WAV or FLAC"
        )
    mpeg = count_frames(audio.read_bytes() if isinstance(audio, Path) else audio)
    if mpeg.problem:
        raise UndecodableError(mpeg.problem)
    with _one_exception():
        file = _SoundFile(io.BytesIO(mpeg.content))
    with file:
        yield AudioStream(file, mpeg.num_samples or _stated_length(file))


def _require_rate(sample_rate: int) -> None:
    if not SAMPLE_RATES[0] <= sample_rate <= SAMPLE_RATES[1]:
        raise UndecodableError(
            f"is damaged: a sample rate of {sample_rate} Hz is outside "
            f"{SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz"
        )


def _stated_length(file: Any) -> int | None:
    return int(file.frames) if file.frames < UNKNOWN_LENGTH else None


def file_problem(error: OSError) -> str:
    """An error of the file system as a problem; it tells nothing about the content."""
    if isinstance(error, FileNotFoundError):
        return "file is missing"
    return f"cannot be read: {error.strerror or error}"


def _require_regular(path: Path) -> None:
    """Raise UndecodableError for a device or a pipe, which would be read for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UndecodableError(f"is not a file, but {kind}")


@contextmanager
def _one_exception() -> Iterator[None]:
    """Whatever soundfile raises as UndecodableError; errors of the file system pass through.

    It raises its own errors, TypeError for a file without a header, ValueError for a length it
    cannot allocate or a name it cannot encode, AssertionError for a seek that missed.
    """
    try:
        yield
    except (OSError, UndecodableError):
        raise
    except Exception as error:
        raise UndecodableError(f"is not audio, or is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """First line of libsndfile's message, without the path that is printed beside it."""
    if isinstance(error, TypeError):  # soundfile takes .raw for headerless samples
        return "it has no header that states its sample rate"
    lines = str(error).splitlines() or [type(error).__name__]
    if "does not exist" in lines[0]:  # mpg123's message for a file without a single frame
        return "no frame can be decoded"
    return lines[0].rsplit(": ", 1)[-1].rstrip(".") or "decoding fails"
