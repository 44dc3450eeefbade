"""Audio files in and out: headers, decoding, writing, and lists of input files. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from stagecli.data.audio_checks import (
    AudioInfo,
    check_content,
    decoding_problem,
    file_problem,
    is_silent,
    open_audio,
)
from stagecli.dsp.resample import resample
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import write_atomic

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".caf"})
Subtype = Literal["FLOAT", "PCM_16"]
MAX_WAV_BYTES = (1 << 32) - (1 << 16)  # lengths have 32 bits; some of them are for the header


def read_header(path: Path) -> AudioInfo:
    """Rate, length and channels from the header of `path`, without decoding.

    Raises StageError when the file is missing or not audio.
    """
    try:
        info = soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from error
    return AudioInfo(int(info.samplerate), int(info.frames), int(info.channels))


def read_mono(audio: Path | bytes, sample_rate: int, name: str = "") -> np.ndarray:
    """Decoded audio as float32 [N] at `sample_rate` Hz: the mean of the channels, then resampled.

    audio: a file or its bytes; name: the audio in an error message (default: the path). Raises
    StageError when it cannot be decoded.
    """
    audio_NC, rate = read_channels(audio, name)
    return resample(audio_NC.mean(axis=1, dtype=np.float32), rate, sample_rate)


def read_channels(audio: Path | bytes, name: str = "") -> tuple[np.ndarray, int]:
    """Decoded audio as float32 [N, channels], and its sample rate in Hz.

    Raises StageError as `read_mono`.
    """
    try:
        with open_audio(audio) as file:
            return file.read(dtype="float32", always_2d=True), int(file.samplerate)
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(name or (audio if isinstance(audio, Path) else "audio"), error) from error


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


def find_audio(source: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """`source` if it is a file, or every audio file under a folder, sorted.

    Each file is decoded once, block by block; silent files are allowed. progress: (files checked,
    files). Raises StageError listing every file that cannot be used.
    """
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        if not files:
            raise StageError(f"no audio files under {source}")
    else:
        files = [source]
    problems = []
    for done, path in enumerate(files, 1):
        if progress:
            progress(done, len(files))
        try:
            _, problem = check_content(path)
        except OSError as error:
            problem = file_problem(error)
        if problem is not None and not is_silent(problem):
            problems.append(Problem(str(path), problem))
    if problems:
        raise StageError(
            f"{len(problems)} of {len(files)} input files cannot be used", problems=problems
        )
    return files


def _unreadable(path: Path | str, error: Exception) -> StageError:
    if isinstance(path, Path) and not path.exists():
        problem = "file is missing"
    elif isinstance(error, OSError):
        problem = file_problem(error)
    else:
        problem = f"cannot be decoded: {decoding_problem(error)}"
    return StageError("cannot read audio", problems=[Problem(str(path), problem)])
