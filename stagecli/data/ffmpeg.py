"""Audio that libsndfile does not read, such as M4A and WMA, through the program `ffmpeg`. No torch.

The program is optional. Files are recognised by their first bytes, so that a folder holds the same
clips with and without it.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from stagecli.data.undecodable import UndecodableError

PROGRAM = "ffmpeg"
# Of files in folders. Video is not among them, nor what has no header; a manifest may name video.
SUFFIXES = frozenset(
    {".aac", ".ac3", ".amr", ".ape", ".dff", ".dsf", ".m4a", ".m4b", ".mka", ".tta", ".wma", ".wv"}
)
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "MP4 or M4A"),
    (0, bytes.fromhex("3026b2758e66cf11"), "WMA"),
    (0, bytes.fromhex("1a45dfa3"), "Matroska or WebM"),
    (0, bytes.fromhex("0b77"), "AC-3"),
    (0, b"#!AMR", "AMR"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"TTA", "True Audio"),
    (0, b"DSD ", "DSD"),
    (0, b"FRM8", "DSD"),
)
"""(position, bytes there, what the file is)."""
HEAD = 16  # bytes that tell a format
COMMAND = (
    *("-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file,pipe"),
    *("-i", "{input}", "-map", "0:a:0", "-f", "au", "-c:a", "pcm_f32be", "-"),
)
AU_HEADER = struct.Struct(">4s5I")  # magic, start of the samples, their bytes, encoding, rate, ch.
LONGEST_MESSAGE = 200  # characters of what the program reports


class ProgramMissingError(OSError):
    """The program is not installed: nothing about the file, and so not to be remembered."""


class PipedAudio:
    """Samples that the program writes, read from start to end; as much as is used of soundfile."""

    def __init__(self, output: IO[bytes], samplerate: int, channels: int) -> None:
        self.samplerate = samplerate
        self.channels = channels
        self._output = output

    def read(self, count: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """Up to `count` samples [n, channels], fewer only at the end."""
        frame = 4 * self.channels
        content = self._output.read(count * frame)
        values = np.frombuffer(content[: len(content) // frame * frame], ">f4")
        return values.astype(dtype).reshape(-1, self.channels)


def foreign_format(raw: BinaryIO) -> str | None:
    """What an open file is, if only the program reads it; None for everything else."""
    raw.seek(0)
    head = raw.read(HEAD)
    if head[:3] == b"ID3" and len(head) >= 10:  # a tag, whose length has 7 bits in each byte
        a, b, c, d = head[6:10]
        raw.seek(10 + (a << 21 | b << 14 | c << 7 | d))
        head = raw.read(HEAD)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    names = (name for start, mark, name in SIGNATURES if head[start:].startswith(mark))
    return next(names, None)


@contextmanager
def decoded(audio: Path | bytes, kind: str) -> Iterator[PipedAudio]:
    """The first audio stream of a file or of its bytes. kind: of `foreign_format`.

    The caller reads to the end, after which damage is raised as UndecodableError, or leaves early.
    Raises ProgramMissingError where the program is not installed.
    """
    program = _program(kind)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as messages:
        # The program reads a file; its messages go to another, which no pipe limits.
        if isinstance(audio, bytes):  # not a pipe, in which the program cannot seek
            path = Path(scratch) / "audio"
            path.write_bytes(audio)
        else:
            path = audio.absolute()
        arguments = [word.format(input=f"file:{path}") for word in COMMAND]
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
        )

        # The caller reads while the program decodes. One that leaves early ends it.
        output = process.stdout
        assert output is not None
        at_end = False
        try:
            header = output.read(AU_HEADER.size)
            if len(header) == AU_HEADER.size:
                _, start, _, _, sample_rate, channels = AU_HEADER.unpack(header)
                output.read(start - AU_HEADER.size)  # a note that may follow the header
                yield PipedAudio(output, sample_rate, channels)
            at_end = not output.read(1)
        finally:
            output.close()
            if not at_end:
                process.kill()
            code = process.wait()
        messages.seek(0)
        text = messages.read().decode("utf-8", "replace").strip()
    if at_end and (code or text or len(header) < AU_HEADER.size):
        raise UndecodableError(f"is not audio, or is damaged: {_first_line(text, path, code)}")


def _program(kind: str) -> str:
    """The path of the program. Raises ProgramMissingError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise ProgramMissingError(
            f"{kind} audio is decoded by the program {PROGRAM}, which is not installed; install it "
            f"(apt-get install {PROGRAM}, brew install {PROGRAM}) or convert the file to .flac"
        )
    return program


def _first_line(text: str, path: Path, code: int) -> str:
    """The first line of what the program reported, without the path that is printed beside it."""
    line = text.splitlines()[0] if text else f"{PROGRAM} ends with code {code} and no message"
    line = re.sub(r"\[(\S+) @ 0x[0-9a-f]+\] ", "", line)  # an address differs at each call
    return line.replace(f"file:{path}: ", "")[:LONGEST_MESSAGE]
