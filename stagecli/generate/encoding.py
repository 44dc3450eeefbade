"""The file formats of audio for people to listen to, and the bytes of their files. No torch."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from stagecli.data.audio import MAX_WAV_BYTES, wav_header
from stagecli.errors import Problem, StageError

# Ending of a file -> how its samples may be stored, in libsndfile's words; the first by default.
SUBTYPES: dict[str, tuple[str, ...]] = {
    "wav": ("FLOAT", "PCM_16", "PCM_24"),
    "flac": ("PCM_24", "PCM_16"),
    "mp3": ("MPEG_LAYER_III",),
    "ogg": ("VORBIS",),
}
# Sample rates in Hz that a format has, where it has not all of them.
RATES = {"mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)}
MOST_CHANNELS = {"wav": 1024, "flac": 8, "mp3": 2, "ogg": 255}
COMPRESSION = 0.2  # libsndfile's scale from the best quality, 0, to the smallest file, 1
BLOCK = 1 << 15  # samples that are encoded at once: libsndfile's Vorbis overflows the stack of more
HELD = 1 << 20  # bytes of a temporary file that are read at once


@dataclass(frozen=True)
class Encoding:
    """format: the ending of the file, without its dot; subtype: how its samples are stored."""

    format: str = "wav"
    subtype: str = "FLOAT"

    @property
    def suffix(self) -> str:
        """The ending of a file name."""
        return f".{self.format}"

    def problem(self, sample_rate: int, shape: tuple[int, int]) -> str | None:
        """Why audio of this rate and shape (N, channels) cannot be written; None if it can."""
        num_samples, channels = shape
        rates = RATES.get(self.format, (sample_rate,))
        if sample_rate not in rates:
            known = ", ".join(map(str, rates))
            return f"{self.format} has no rate of {sample_rate} Hz, only {known}"
        most = MOST_CHANNELS[self.format]
        if channels > most:
            return f"{self.format} holds at most {most} channels, not {channels}"
        size = 4 * num_samples * channels
        if self.format == "wav" and size > MAX_WAV_BYTES:
            return f"{size / 2**30:.1f} GiB of audio do not fit a WAV file: work on parts of it"
        return None

    def pieces(
        self, blocks: Iterable[np.ndarray], shape: tuple[int, int], sample_rate: int, *, path: Path
    ) -> Iterator[bytes]:
        """The bytes of the file `path` that holds blocks [n, channels] of `shape` in all.

        Equal audio makes equal bytes, but for Ogg, whose streams have random numbers. Needs disk
        space beside `path`, but for float WAV. Raises StageError, OSError.
        """
        if self.subtype == "FLOAT":
            yield wav_header(shape, sample_rate, name=str(path))
            for block_NC in blocks:
                yield np.asarray(block_NC, "<f4").tobytes()
            return
        with tempfile.TemporaryFile(dir=nearest_folder(path)) as held:
            self._encode(blocks, shape[1], sample_rate, held)
            _require_whole(held, shape[0])
            held.seek(0)
            while data := held.read(HELD):
                yield data

    def _encode(
        self, blocks: Iterable[np.ndarray], channels: int, sample_rate: int, file: IO[bytes]
    ) -> None:
        import soundfile

        is_lossy = self.format in ("mp3", "ogg")
        with soundfile.SoundFile(
            file,
            "w",
            sample_rate,
            channels,
            self.subtype,
            format=self.format,
            compression_level=COMPRESSION if is_lossy else None,
        ) as stream:
            for block_NC in blocks:
                for start in range(0, len(block_NC), BLOCK):
                    stream.write(np.asarray(block_NC[start : start + BLOCK], np.float32))


def choose_encoding(
    output: Path | None, format: str | None = None, subtype: str | None = None
) -> Encoding:
    """What --format, --subtype and the ending of --output say together; float WAV by default.

    Raises StageError for what does not go together, and for what libsndfile lacks.
    """
    ending = output.suffix.lower().removeprefix(".") if output else ""
    named = ending if ending in SUBTYPES else None
    chosen = format or named or "wav"
    subtypes = SUBTYPES[chosen]
    problems = []
    if named and chosen != named:
        problems.append(Problem(f"--format {chosen}", f"--output {output} ends in .{named}"))
    stored = (subtype or subtypes[0]).upper()
    if stored not in subtypes:
        known = ", ".join(subtypes)
        problems.append(Problem(f"--subtype {subtype}", f"--format {chosen} has {known}"))
    if problems:
        raise StageError(
            "flags that do not go together", problems=problems, hint="leave one of each out"
        )
    encoding = Encoding(chosen, stored)
    _require_codec(encoding)
    return encoding


def _require_codec(encoding: Encoding) -> None:
    import soundfile

    if not soundfile.check_format(encoding.format, encoding.subtype):
        raise StageError(
            f"the installed libsndfile cannot write {encoding.format} with {encoding.subtype}",
            hint="pip install --upgrade soundfile, or choose another --format",
        )


def _require_whole(file: IO[bytes], num_samples: int) -> None:
    """Raise OSError if a file holds less audio: a full disk is no error to libsndfile."""
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(file) as stream:
            length = stream.frames
    except soundfile.LibsndfileError:
        length = 0
    if length < num_samples:
        raise OSError(errno.ENOSPC, "the encoded audio is not whole: is the disk full?")


def nearest_folder(path: Path) -> Path:
    """The folder of `path`, or the first above it that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
