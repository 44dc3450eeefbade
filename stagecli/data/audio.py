"""Audio files in and out: decoding, explicit resampling, and the reasons a file is unusable. No torch."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile

from stagecli.errors import EXIT_FAILED, Problem, StageError

SILENCE = (
    2e-5  # peak; less than the smallest 16-bit value (3e-5), more than rounding leaves of antiphase
)
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".caf"})
BLOCK = 1 << 18  # frames decoded at once while checking, so that hour-long files need little memory
UNKNOWN_LENGTH = (
    1 << 62
)  # libsndfile's frame count of a stream whose header states none is above this


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds. sample_rate: Hz; frames: samples per channel; channels: 1 is mono."""

    sample_rate: int
    frames: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def probe(path: Path) -> AudioInfo:
    """What the header of `path` says, without decoding; StageError if it is missing or not audio."""
    try:
        info = soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from error
    return AudioInfo(int(info.samplerate), int(info.frames), int(info.channels))


def read_mono(audio: Path | bytes, sample_rate: int, name: str = "") -> np.ndarray:
    """Decoded audio as float32 [N] at `sample_rate` Hz: the mean of the channels, then resampled.

    audio: a file or its bytes; name: what an error calls it (default: the path). StageError if it
    cannot be decoded.
    """
    audio_NC, rate = read_channels(audio, name)
    return resample(audio_NC.mean(axis=1, dtype=np.float32), rate, sample_rate)


def read_channels(audio: Path | bytes, name: str = "") -> tuple[np.ndarray, int]:
    """Decoded audio as float32 [N, channels] and its sample rate in Hz; StageError as `read_mono`."""
    try:
        with _opened(audio) as file:
            return file.read(dtype="float32", always_2d=True), int(file.samplerate)
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(name or (audio if isinstance(audio, Path) else "audio"), error) from error


def resample(audio_N: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Audio [N] from one rate in Hz to another: float32 [ceil(N * to / from)], no delay.

    Polyphase with a Kaiser window: flat to 0.9 of the lower Nyquist frequency, 80 dB down above it.
    SciPy rather than torchaudio: loader processes then need no torch, the result does not depend on
    a device, and the filter is ours to state (SciPy's own default leaks audibly above Nyquist).
    """
    audio_N = np.asarray(audio_N, dtype=np.float32)
    if from_rate == to_rate or audio_N.size == 0:
        return audio_N
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    up = to_rate // divisor
    down = from_rate // divisor
    return np.asarray(
        resample_poly(audio_N, up, down, window=_taps(max(up, down))), dtype=np.float32
    )


@lru_cache(maxsize=16)
def _taps(factor: int, transition: float = 0.1, attenuation: float = 80.0) -> np.ndarray:
    """Low-pass at 1/factor of Nyquist; transition: as a share of that; attenuation: dB (Kaiser's formula)."""
    from scipy.signal import firwin, kaiser_beta

    half = math.ceil((attenuation - 7.95) * factor / (2.285 * math.pi * transition) / 2)
    window = ("kaiser", kaiser_beta(attenuation))
    return np.asarray(
        firwin(2 * half + 1, (1 - transition / 2) / factor, window=window), dtype=np.float32
    )


def check_audio(audio: Path | bytes, sample_rate: int) -> str | None:
    """Why `audio` cannot be used in a recipe at `sample_rate` Hz, or None. Decodes the whole file."""
    try:
        info, reason = examine(audio)
    except OSError as error:
        return absent(error)
    return reason or too_low(info, sample_rate)


def too_low(info: AudioInfo | None, sample_rate: int) -> str | None:
    """The reason if the file's own rate is below the recipe's (upsampled audio has an empty band)."""
    if info is None or info.sample_rate >= sample_rate:
        return None
    return f"sample rate {info.sample_rate} Hz is below the recipe's {sample_rate} Hz"


def absent(error: OSError) -> str:
    """The reason for an error of the file system; it says nothing about the content."""
    return (
        "file is missing"
        if isinstance(error, FileNotFoundError)
        else f"cannot be read: {error.strerror}"
    )


def examine(audio: Path | bytes) -> tuple[AudioInfo | None, str | None]:
    """What the content of a file or of its bytes is, and why it is unusable at any sample rate (or None).

    Both depend on the content alone, so they can be remembered. OSError where the file system fails.
    """
    with open(audio, "rb") if isinstance(audio, Path) else io.BytesIO(audio) as raw:
        size = raw.seek(0, os.SEEK_END)
        if size == 0:
            return None, "file is empty"
        cut = _truncation(raw, size)
    try:
        with _opened(audio) as file:
            stated = int(file.frames)
            frames, peak, finite = _scan(file)
            info = AudioInfo(int(file.samplerate), frames, int(file.channels))
    except soundfile.SoundFileError as error:
        return None, cut or f"is not audio, or is damaged: {_first_line(error)}"
    if cut:
        return info, cut
    if frames < stated < UNKNOWN_LENGTH:
        return info, f"is truncated: {frames} of {stated} frames can be decoded"
    if frames == 0:
        return info, "holds no samples"
    if not finite:
        return info, "holds NaN or infinite samples"
    if peak < SILENCE:
        return info, f"is silent (peak of the mono mix {peak:.1g})"
    return info, None


def write_wav(
    path: Path, audio: np.ndarray, sample_rate: int, subtype: Literal["FLOAT", "PCM_16"] = "FLOAT"
) -> None:
    """Write audio [N] or [N, channels] as WAV, atomically; the same audio gives the same bytes.

    FLOAT keeps float32 values as they are, also above 1. PCM_16 raises StageError rather than clip
    (full scale is 1.0); so do NaN and infinite values in either.
    """
    from scipy.io import wavfile  # libsndfile stamps the time into float files

    values = np.asarray(audio, dtype=np.float32)
    peak = float(np.abs(values).max(initial=0.0))
    what = None
    if not np.isfinite(peak):
        what = "audio has NaN or infinite samples"
    elif subtype == "PCM_16" and peak > 1.0:
        what = f"peak {peak:.3f} would clip in 16 bits"
    if what:
        raise StageError(
            f"cannot write {path.name}",
            problems=[Problem(str(path), what)],
            hint="write float32, or scale the audio down" if np.isfinite(peak) else None,
            exit_code=EXIT_FAILED,
        )
    if subtype == "PCM_16":
        values = np.minimum(np.rint(values * 32768.0), 32767).astype(np.int16)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            wavfile.write(file, sample_rate, values)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _opened(audio: Path | bytes) -> Iterator[Any]:
    source = str(audio) if isinstance(audio, Path) else io.BytesIO(audio)
    with soundfile.SoundFile(source) as file:
        yield file


def _scan(file: Any) -> tuple[int, float, bool]:
    """(frames that decode, peak of the mono mix, whether every sample is finite)."""
    frames = 0
    peak = 0.0
    finite = True
    while True:
        block_NC = file.read(BLOCK, dtype="float32", always_2d=True)
        if len(block_NC) == 0:
            return frames, peak, finite
        frames += len(block_NC)
        if not np.isfinite(block_NC).all():
            return frames + max(0, int(file.frames) - frames), peak, False
        peak = max(peak, float(np.abs(block_NC.mean(axis=1)).max()))


def _truncation(raw: BinaryIO, size: int) -> str | None:
    """Truncation that libsndfile hides, because it takes the length from the file and not the header.

    For WAV, RF64, AIFF and Ogg; FLAC, MP3 and CAF show theirs when they are decoded.
    """
    raw.seek(0)
    magic = raw.read(12)
    if magic[:4] == b"OggS":
        return _ogg_end(raw, size)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
        return _chunk_end(raw, size, "<", b"data")
    if magic[:4] == b"FORM" and magic[8:11] == b"AIF":
        return _chunk_end(raw, size, ">", b"SSND")
    return None


def _chunk_end(raw: BinaryIO, size: int, order: str, name: bytes) -> str | None:
    """Whether the chunk `name` of a RIFF or IFF file promises more bytes than the file has."""
    position = 12
    long = 0
    while position + 8 <= size:
        raw.seek(position)
        tag, length = struct.unpack(f"{order}4sI", raw.read(8))
        position += 8
        if tag == b"ds64":  # RF64 (EBU Tech 3306): the length of a file above 4 GiB
            long = struct.unpack("<8xQ", raw.read(16).ljust(16, b"\0"))[0]
        if tag == name:
            length = long or length
            # A writer to a pipe cannot know the length and leaves 0 or close to the largest value.
            if (long or length < 0x7FFFF000) and length > size - position:
                return f"is truncated: {size - position} of {length} bytes of audio are there"
            return None
        position += length + length % 2
    return "is truncated: it ends before its audio"


def _ogg_end(raw: BinaryIO, size: int) -> str | None:
    """Whether the last Ogg page is cut off or is not marked as the last of its stream (RFC 3533)."""
    window = min(size, 1 << 17)  # a page has at most 65307 bytes
    raw.seek(size - window)
    tail = raw.read(window)
    start = tail.rfind(b"OggS")
    page = tail[start:] if start >= 0 else b""
    segments = page[26] if len(page) > 26 else 0
    if len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments]):
        return "is truncated: its last Ogg page is cut off"
    return None if page[5] & 4 else "is truncated: its Ogg stream has no last page"


def _first_line(error: Exception) -> str:
    text = str(error).splitlines() or [type(error).__name__]
    if "does not exist" in text[0]:  # what mpg123 says of a file without a single frame
        return "no frame can be decoded"
    return text[0].rsplit(": ", 1)[-1].rstrip(".")  # without the path, which is printed beside it


def _unreadable(path: Path | str, error: Exception) -> StageError:
    what = (
        absent(error) if isinstance(error, OSError) else f"cannot be decoded: {_first_line(error)}"
    )
    if isinstance(path, Path) and not path.exists():
        what = "file is missing"
    return StageError("cannot read audio", problems=[Problem(str(path), what)])


def find_audio(source: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """A file, or every audio file under a folder. Raises StageError listing what cannot be used.

    progress: (files looked at, files); each is decoded once, block by block.
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
            info, reason = examine(path)
        except OSError as error:
            info = None
            reason = absent(error)
        if reason is not None and not (reason.startswith("is silent") and info is not None):
            problems.append(Problem(str(path), reason))
    if problems:
        raise StageError(
            f"{len(problems)} of {len(files)} input files cannot be used", problems=problems
        )
    return files
