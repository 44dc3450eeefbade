"""Truncation that libsndfile hides, because it takes the length from the file, not the header.

For WAV, RF64, AIFF and Ogg; FLAC, MP3 and CAF reveal it when decoded. No torch.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO


def container_problem(raw: BinaryIO) -> str | None:
    """Why the audio in an open file is incomplete, or would be read incompletely; or None."""
    size = raw.seek(0, os.SEEK_END)
    if size == 0:
        return "file is empty"
    raw.seek(0)
    magic = raw.read(12)
    if magic[:4] == b"OggS":
        return _ogg_problem(raw, size)
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
