"""The number of samples that the frames of a FLAC file hold, from the header of its last frame.

Decoders stop at the number that the file's own header states. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"fLaC"
TAIL = 1 << 16  # bytes at the end in which the last frame is looked for, if it may not be longer
CRC8 = 0x07
CRC16 = 0x8005
LONGEST_HEADER = 16


@dataclass(frozen=True)
class _Frame:
    """A frame's first sample, or its number where all frames have one size; and its size."""

    number: int
    size: int
    is_variable: bool


def flac_problem(raw: BinaryIO, size: int) -> str | None:
    """Why an open FLAC file of `size` bytes would be read incompletely; None if it would not.

    What follows the last frame, such as a tag, hides that. Format: RFC 9639.
    """
    # What the file states of itself.
    raw.seek(8)
    header = raw.read(34)
    stated = int.from_bytes(header[13:18], "big") & ((1 << 36) - 1)
    if len(header) < 34 or not stated:
        return None
    frame_size = int.from_bytes(header[2:4], "big")
    longest = int.from_bytes(header[7:10], "big")

    # What its last frame tells.
    raw.seek(max(0, size - max(TAIL, longest)))
    tail = raw.read()
    for position, frame in _frames_backwards(tail):
        start = frame.number * (1 if frame.is_variable else frame_size)
        held = start + frame.size
        if held <= stated:
            return None
        if crc(tail[position:], CRC16, 16) == 0:  # else these bytes only look like a frame
            return f"its header states {stated} samples, but it holds {held}: save it again"
    return None


def _frames_backwards(tail: bytes) -> Iterator[tuple[int, _Frame]]:
    """(position, frame) of all that looks like the header of a frame, the last one first."""
    position = len(tail)
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        frame = _frame_at(tail[position : position + LONGEST_HEADER])
        if frame is not None:
            yield position, frame


def _frame_at(header: bytes) -> _Frame | None:
    """The frame whose header begins with these bytes, if they are one."""
    if len(header) < 6 or header[1] not in (0xF8, 0xF9) or header[3] & 1:
        return None
    code = header[2] >> 4
    rate = header[2] & 15
    number, end = _coded_number(header, 4)
    if code == 0 or rate == 15 or number is None:
        return None

    # Sizes and rates that no code stands for follow the number.
    more = {6: 1, 7: 2}.get(code, 0)
    coded_size = int.from_bytes(header[end : end + more], "big") + 1
    end += more + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if end >= len(header) or crc(header[: end + 1], CRC8, 8) != 0:
        return None
    if code in (6, 7):
        size = coded_size
    elif code >= 8:
        size = 256 << (code - 8)
    else:
        size = 192 if code == 1 else 576 << (code - 2)
    return _Frame(number, size, is_variable=header[1] == 0xF9)


def _coded_number(header: bytes, start: int) -> tuple[int | None, int]:
    """(the number at `start`, coded as UTF-8 up to 36 bits, or None; the position after it)."""
    first = header[start]
    if first < 0x80:
        return first, start + 1
    length = 8 - (first ^ 0xFF).bit_length()  # leading ones
    rest = header[start + 1 : start + length]
    if not 2 <= length <= 7 or len(rest) < length - 1 or any(byte >> 6 != 2 for byte in rest):
        return None, start
    number = first & ((1 << (7 - length)) - 1) if length < 7 else 0
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, start + length


def crc(content: bytes, polynomial: int, bits: int) -> int:
    """Remainder of the content; 0 where it ends with its own checksum."""
    top = 1 << (bits - 1)
    mask = (1 << bits) - 1
    value = 0
    for byte in content:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value
