"""The length of MPEG audio, counted frame by frame: its header states no length, or a wrong one.

libsndfile believes the frame count of a Xing header, and without one estimates the length from the
size of the file and the first bit rate; it reads no further than that. So the frames are counted
here, a wrong number is corrected, and a file without one is made so long, by repeating its last
frame, that no estimate is too short. No torch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# ISO/IEC 11172-3 and 13818-3: kbit/s by (MPEG-1 or later, layer), for bit rate indices 1 to 14.
BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLE_RATES = (44100, 48000, 32000)  # of MPEG-1; MPEG-2 has half, MPEG-2.5 a quarter
TAGS = (b"Xing", b"Info")  # of the frame that holds the number of frames instead of audio
HAS_FRAMES = 1  # flags of that frame
HAS_BYTES = 2


@dataclass(frozen=True)
class FrameHeader:
    """The first four bytes of a frame.

    size: bytes of the whole frame; samples: per channel; layer: 1 to 3; kind: what all frames of a
    stream share, which is version, layer and sample rate.
    """

    size: int
    samples: int
    layer: int
    kind: int
    is_mpeg1: bool
    is_mono: bool

    @property
    def side_bytes(self) -> int:
        """Bytes between the header and a Xing tag (the side information of layer 3)."""
        if self.is_mpeg1:
            return 17 if self.is_mono else 32
        return 9 if self.is_mono else 17


@dataclass(frozen=True)
class Mpeg:
    """A stream that libsndfile decodes to its end.

    content: the bytes to decode; num_samples: of them that count, per channel, None where the
    header states them rightly; problem: damage that decoding would not show, or None.
    """

    content: bytes
    num_samples: int | None = None
    problem: str | None = None


def count_frames(content: bytes) -> Mpeg:
    """Count the frames of MPEG audio, and correct the header or the estimate of their number.

    Content without two frames in a row is left as it is.
    """
    # The frames, and the number that a Xing header in the first of them states.
    frames = list(_frames(content))
    if not frames:
        return Mpeg(content)
    start, first = frames[0]
    tag = start + 4 + first.side_bytes
    has_tag = first.layer == 3 and content[tag : tag + 4] in TAGS
    flags = struct.unpack_from(">I", content, tag + 4)[0] if has_tag else 0
    stated = struct.unpack_from(">I", content, tag + 8)[0] if flags & HAS_FRAMES else None
    last_start, last = frames[-1]
    end = last_start + last.size
    is_cut = end > len(content)
    counted = len(frames) - has_tag - is_cut

    # Fewer frames than stated, or half a frame at the end.
    if stated is not None and counted < stated:
        problem = f"is truncated: {counted} of {stated} MPEG frames are present"
        return Mpeg(content, problem=problem)
    if is_cut and stated != counted:
        return Mpeg(content, problem="is truncated: its last MPEG frame is cut off")

    # As many as stated, more, or no statement.
    if stated == counted:
        return Mpeg(content)
    if stated is not None:
        return Mpeg(_restated(content[start:end], tag - start, flags, counted))
    longest = max(header.size for _, header in frames)
    repeats = math.ceil(((counted + 2) * longest - (end - start)) / last.size)
    padded = content[start:end] + repeats * content[last_start:end]
    return Mpeg(padded, num_samples=counted * first.samples)


def _frames(content: bytes) -> Iterator[tuple[int, FrameHeader]]:
    """Where each frame starts, and its header; the last one may be cut off.

    A frame counts if another of its kind, or the end of the file, follows it or went before it.
    """
    position = _after_id3(content)
    kind = None
    in_step = False
    while (position := content.find(b"\xff", position)) >= 0:
        header = _header(content, position)
        if header is not None and kind in (None, header.kind):
            end = position + header.size
            follower = _header(content, end)
            if in_step or end == len(content) or (follower and follower.kind == header.kind):
                yield position, header
                kind = header.kind
                position = end
                in_step = True
                continue
        in_step = False
        position += 1


def _after_id3(content: bytes) -> int:
    """Where the audio may start: after the ID3v2 tags, whose pictures may look like frames."""
    position = 0
    while content[position : position + 3] == b"ID3" and len(content) >= position + 10:
        size = 0
        for byte in content[position + 6 : position + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(content[position + 5] & 0x10)
        position += 10 + size + 10 * has_footer
    return position


def _header(content: bytes, position: int) -> FrameHeader | None:
    """The frame header at a position; None where there is none, or one of a free bit rate."""
    if len(content) < position + 4 or content[position] != 0xFF:
        return None
    _, second, third, fourth = content[position : position + 4]
    version = second >> 3 & 3  # 0: MPEG-2.5, 1: reserved, 2: MPEG-2, 3: MPEG-1
    layer = 4 - (second >> 1 & 3)
    rate_index = third >> 2 & 3
    bit_rate_index = third >> 4
    if second & 0xE0 != 0xE0 or version == 1 or layer == 4 or rate_index == 3:
        return None
    if bit_rate_index in (0, 15):
        return None
    is_mpeg1 = version == 3
    bit_rate = 1000 * BIT_RATES[is_mpeg1, layer][bit_rate_index - 1]
    sample_rate = SAMPLE_RATES[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    padding = third >> 1 & 1
    if layer == 1:
        samples = 384
        size = 4 * (12 * bit_rate // sample_rate + padding)
    else:
        samples = 576 if layer == 3 and not is_mpeg1 else 1152
        size = samples // 8 * bit_rate // sample_rate + padding
    return FrameHeader(
        size=size,
        samples=samples,
        layer=layer,
        kind=(second & 0xFE) << 8 | third & 0x0C,
        is_mpeg1=is_mpeg1,
        is_mono=fourth >> 6 == 3,
    )


def _restated(content: bytes, tag: int, flags: int, count: int) -> bytes:
    """The stream with another number of frames in the Xing header at byte `tag`."""
    patched = bytearray(content)
    struct.pack_into(">I", patched, tag + 8, count)
    if flags & HAS_BYTES:
        struct.pack_into(">I", patched, tag + 12, len(patched) & 0xFFFFFFFF)
    return bytes(patched)
