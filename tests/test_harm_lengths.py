"""Audio beyond the length that a header states is reported, not silently left out."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stagecli.data.audio import read_mono
from stagecli.data.audio_checks import check_content
from stagecli.data.flac import crc
from stagecli.errors import StageError

RATE = 16000


def encoded(num_samples: int, form: str, subtype: str = "PCM_16", channels: int = 1) -> bytes:
    noise = 0.1 * np.random.default_rng(num_samples).standard_normal((num_samples, channels))
    file = io.BytesIO()
    soundfile.write(file, noise, RATE, format=form, subtype=subtype)
    return file.getvalue()


def with_total(flac: bytes, total: int) -> bytes:
    """A FLAC file whose header states another number of samples."""
    bits = int.from_bytes(flac[18:26], "big") >> 36 << 36 | total
    return flac[:18] + bits.to_bytes(8, "big") + flac[26:]


def with_length(audio: bytes, tag: bytes, order: str, length: int) -> bytes:
    """A WAV or AIFF file whose chunk `tag` states another number of bytes."""
    place = audio.index(tag) + 4
    return audio[:place] + struct.pack(f"{order}I", length) + audio[place + 4 :]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("num_samples", [3000, 4096, 16000, 100_000])
def test_a_flac_that_holds_more_than_it_states_is_refused(
    num_samples: int, subtype: str, channels: int, tmp_path: Path
) -> None:
    whole = encoded(num_samples, "FLAC", subtype, channels)
    assert check_content(whole)[1] is None
    assert check_content(with_total(whole, 0))[1] is None  # of a stream: the length is not stated
    for stated in (1, num_samples // 2, num_samples - 1):
        wrong = with_total(whole, stated)
        assert check_content(wrong)[1] == (
            f"its header states {stated} samples, but it holds {num_samples}: save it again"
        )
        path = tmp_path / "a.flac"
        path.write_bytes(wrong)
        with pytest.raises(StageError, match="its header states"):
            read_mono(path, RATE)


def test_damaged_ends_of_a_flac_are_not_called_longer() -> None:
    """Bytes that only look like a frame: its checksum decides."""
    whole = encoded(20_000, "FLAC")
    generator = random.Random(0)
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(20):
            content[generator.randrange(len(whole) - 3000, len(whole))] = generator.randrange(256)
        assert "its header states" not in (check_content(bytes(content))[1] or "")
    assert check_content(whole + b"TAG" + bytes(125))[1] is None


def test_checksums_are_those_of_the_format() -> None:
    assert crc(b"123456789", 0x07, 8) == 0xF4  # CRC-8/SMBUS
    assert crc(b"123456789", 0x8005, 16) == 0xFEE8  # CRC-16/UMTS


@pytest.mark.parametrize(("form", "tag", "order"), [("WAV", b"data", "<"), ("AIFF", b"SSND", ">")])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_whose_header_states_less_than_it_holds_is_refused(
    form: str, tag: bytes, order: str, subtype: str
) -> None:
    whole = encoded(4000, form, subtype)
    assert check_content(whole)[1] is None
    for stated in (2, 480, 6000):
        problem = check_content(with_length(whole, tag, order, stated))[1] or ""
        assert problem.startswith(f"its header states {stated} bytes of audio"), problem


ODD = encoded(1001, "WAV", "PCM_U8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nothing", ODD),
        ("no padding", ODD.removesuffix(b"\0")),
        ("a chunk", ODD + b"LIST" + struct.pack("<I", 600) + b"x" * 600),
        (
            "a chunk without padding before",
            ODD.removesuffix(b"\0") + b"LIST\x58\x02\0\0" + b"x" * 600,
        ),
        ("an ID3 tag", ODD + b"ID3\4\0\0\0\0\7\0" + b"x" * 900),
        ("zeros", ODD + bytes(100_000)),
        ("some bytes", ODD + b"\xff" * 200),
        ("a length that a pipe left at 0", with_length(ODD, b"data", "<", 0)),
        ("a length that a pipe left at most", with_length(ODD, b"data", "<", 0xFFFFFFFF)),
    ],
)
def test_what_may_follow_the_audio_of_a_wav(name: str, content: bytes) -> None:
    problem = check_content(content)[1] or ""
    assert "its header states" not in problem, name
