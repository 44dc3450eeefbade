"""Audio files in and out: reading and writing. No torch."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from stagecli.data.decoding import AudioStream, file_problem, open_audio
from stagecli.data.undecodable import UndecodableError
from stagecli.dsp.resample import STANDARD, Quality, resample
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import write_atomic

Subtype = Literal["FLOAT", "PCM_16"]
IEEE_FLOAT = 3  # the format tag of float samples
MAX_WAV_BYTES = (1 << 32) - (1 << 16)  # lengths have 32 bits; some of them are for the header


def read_mono(
    audio: Path | bytes, sample_rate: int, name: str = "", *, quality: Quality = STANDARD
) -> np.ndarray:
    """Decoded audio as float32 [N] at `sample_rate` Hz: the mean of the channels, then resampled.

    audio: a file or its bytes; name: the audio in an error message (default: the path); quality: of
    the resampling. Raises StageError when it cannot be decoded.
    """
    audio_NC, rate = read_channels(audio, name)
    mono_N = audio_NC.mean(axis=1, dtype=np.float32)
    if rate == sample_rate:
        return mono_N
    return resample(mono_N, rate, sample_rate, quality).astype(np.float32, copy=False)


def read_channels(audio: Path | bytes, name: str = "") -> tuple[np.ndarray, int]:
    """Decoded audio as float32 [N, channels], and its sample rate in Hz.

    Raises StageError as `read_mono`.
    """
    with _decoded(audio, name) as stream:
        empty_NC = np.zeros((0, stream.channels), np.float32)
        return np.concatenate([empty_NC, *stream.blocks()]), stream.sample_rate


def read_format(audio: Path) -> tuple[int, int]:
    """Sample rate in Hz and number of channels of a file. Raises StageError as `read_mono`."""
    with _decoded(audio) as stream:
        return stream.sample_rate, stream.channels


def read_blocks(audio: Path) -> Iterator[np.ndarray]:
    """A file of any length, decoded in blocks of float32 [n, channels].

    Raises StageError as `read_mono`.
    """
    with _decoded(audio) as stream:
        yield from stream.blocks()


@contextmanager
def _decoded(audio: Path | bytes, name: str = "") -> Iterator[AudioStream]:
    """`open_audio` whose errors are StageError."""
    try:
        with open_audio(audio) as stream:
            yield stream
    except (OSError, UndecodableError) as error:
        where = name or (str(audio) if isinstance(audio, Path) else "audio")
        problem = file_problem(error) if isinstance(error, OSError) else str(error)
        raise StageError("cannot read audio", problems=[Problem(where, problem)]) from error


def write_wav(path: Path, audio: np.ndarray, sample_rate: int, subtype: Subtype = "FLOAT") -> None:
    """Write audio [N] or [N, channels] as WAV, atomically; as `wav_bytes`, also in its errors."""
    write_atomic(path, wav_bytes(audio, sample_rate, subtype, name=str(path)))


def wav_bytes(
    audio: np.ndarray, sample_rate: int, subtype: Subtype = "FLOAT", *, name: str
) -> bytes:
    """Audio [N] or [N, channels] as a WAV file; equal audio makes equal bytes.

    FLOAT keeps float32 values unchanged, also above 1. name: of the audio in an error message.
    Raises StageError for NaN and infinite values, with PCM_16 rather than clip (full scale is 1.0),
    and for more than the 4 GiB that a WAV file can hold.
    """
    from scipy.io import wavfile  # libsndfile stamps the time into float files

    values = np.asarray(audio, dtype=np.float32)
    peak = float(np.abs(values).max(initial=0.0))
    problem = None
    hint = None
    if not np.isfinite(peak):
        problem = "audio has NaN or infinite samples"
    elif subtype == "PCM_16" and peak > 1.0:
        problem = f"peak {peak:.3f} would clip in 16 bits"
        hint = "write float32, or scale the audio down"
    elif values.nbytes > MAX_WAV_BYTES:
        problem = f"{values.nbytes / 2**30:.1f} GiB of audio do not fit a WAV file"
        hint = "work on parts of it"
    if problem:
        raise StageError(
            f"cannot write {Path(name).name}",
            problems=[Problem(name, problem)],
            hint=hint,
            exit_code=EXIT_FAILED,
        )
    if subtype == "PCM_16":
        values = np.minimum(np.rint(values * 32768.0), 32767).astype(np.int16)
    file = io.BytesIO()
    wavfile.write(file, sample_rate, values)
    return file.getvalue()


def wav_header(shape: tuple[int, int], sample_rate: int, *, name: str) -> bytes:
    """The start of the file that `wav_bytes` makes of float audio [N, channels] of this shape.

    The samples follow as little-endian float32. Raises StageError for more than a WAV file holds.
    """
    num_samples, channels = shape
    frame = 4 * channels
    size = num_samples * frame
    if size > MAX_WAV_BYTES:
        raise StageError(
            f"cannot write {Path(name).name}",
            problems=[Problem(name, f"{size / 2**30:.1f} GiB of audio do not fit a WAV file")],
            hint="work on parts of it",
            exit_code=EXIT_FAILED,
        )
    header = b"WAVEfmt " + struct.pack(
        "<IHHIIHHH", 18, IEEE_FLOAT, channels, sample_rate, sample_rate * frame, frame, 32, 0
    )
    header += struct.pack("<4sII", b"fact", 4, num_samples) + struct.pack("<4sI", b"data", size)
    return struct.pack("<4sI", b"RIFF", len(header) + size) + header
