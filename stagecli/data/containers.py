"""Lengths that libsndfile believes: audio that is cut off, and audio beyond the stated end.

Truncation for WAV, RF64, AIFF, AU and Ogg; FLAC, MP3 and CAF reveal it when decoded. More than is
stated for WAV, AIFF and FLAC. No torch.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from stagecli.data.flac import MAGIC, flac_problem

# Bytes after the audio of a WAV that may be anything: writers pad, and add tags without a chunk.
HARMLESS = 512
TAGS = (b"ID3", b"TAG")
UNKNOWN = 0xFFFFFFFF  # the length that AU states for a pipe


def container_problem(raw: BinaryIO) -> str | None:
    """Why the audio in an open file is incomplete, or would be read incompletely; or None."""
    size = raw.seek(0, os.SEEK_END)
    if size == 0:
        return "file is empty"
    raw.seek(0)
    magic = raw.read(12)
    if magic[:4] == MAGIC:
        return flac_problem(raw, size)
    if magic[:4] == b"OggS":
        return _ogg_problem(raw, size)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
        return _chunk_problem(raw, size, "<", b"data")
    if magic[:4] == b"FORM" and magic[8:11] == b"AIF":
        return _chunk_problem(raw, size, ">", b"SSND")
    if magic[:4] == b".snd":
        start, length = struct.unpack(">2I", magic[4:].ljust(8, b"\0"))
        if length != UNKNOWN and start + length > size:
            return f"is truncated: {size - start} of {length} bytes of audio are present"
    return None


def _chunk_problem(raw: BinaryIO, size: int, order: str, name: bytes) -> str | None:
    """The problem if chunk `name` of a RIFF or IFF file states more bytes than the file has.

    Or fewer, so that no chunk follows where it ends.
    """
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
            if stated and length and not _ends_in_chunks(raw, size, position + length, order):
                more = size - position - length
                return (
                    f"its header states {length} bytes of audio, but {more} more follow that are "
                    "no chunk: save it again"
                )
            return None
        position += length + length % 2
    return "is truncated: it ends before its audio"


def _ends_in_chunks(raw: BinaryIO, size: int, end: int, order: str) -> bool:
    """Whether what follows the audio is another chunk, or nothing that would be missed."""
    for position in (end, end + end % 2):  # some writers leave the padding out
        if size - position <= HARMLESS:
            return True
        raw.seek(position)
        head = raw.read(8)
        tag, length = struct.unpack(f"{order}4sI", head)
        is_name = all(32 <= byte < 127 for byte in tag)
        if (is_name and length <= size - position - 8) or head.startswith(TAGS):
            return True
    raw.seek(end)
    return not any(any(block) for block in iter(lambda: raw.read(1 << 16), b""))


def _ogg_problem(raw: BinaryIO, size: int) -> str | None:
    """The problem if the last Ogg page is cut off or not the last of its stream (RFC 3533).

    Or if streams follow one another, as concatenated files do: only the first would be read.
    """
    position = 0
    in_audio = False
    is_last = False
    while position < size:
        raw.seek(position)
        page = raw.read(27)
        if page[:4] != b"OggS":
            break  # what follows the last page, such as a tag
        segments = raw.read(page[26]) if len(page) == 27 else b""
        if len(page) < 27 or len(segments) < page[26]:
            return "is truncated: its last Ogg page is cut off"
        position += 27 + len(segments) + sum(segments)
        is_first = bool(page[5] & 2)
        if is_first and in_audio:
            return (
                "holds several Ogg streams in a row, of which only the first would be read: "
                "decode it and save it as one"
            )
        in_audio = not is_first
        is_last = bool(page[5] & 4)
    if position > size:
        return "is truncated: its last Ogg page is cut off"
    return None if is_last else "is truncated: its Ogg stream has no last page"
