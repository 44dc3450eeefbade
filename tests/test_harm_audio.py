"""Audio is read to its end or refused: lengths that are only estimated, devices, odd formats."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Result

from stagecli.data.audio import read_channels, read_mono
from stagecli.data.audio_checks import check_content
from stagecli.errors import StageError

RATE = 16000
SECONDS = 12
FRAME = 576  # samples of an MPEG-2 layer 3 frame
Cli = Callable[..., Result]


def speech_like() -> np.ndarray:
    """Loud and faint stretches, to which a variable bit rate gives frames of many sizes."""
    noise = np.random.default_rng(0).standard_normal(SECONDS * RATE)
    loud = np.arange(len(noise)) / RATE % 3 > 2
    return np.clip(np.where(loud, 0.3, 0.001) * noise, -1, 1).astype(np.float32)


def mp3(bitrate_mode: str = "VARIABLE") -> bytes:
    """An MP3 with a Xing header, as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(
        file,
        speech_like(),
        RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode=bitrate_mode,
        compression_level=0.5,
    )
    return file.getvalue()


def tag_of(content: bytes) -> int:
    """Where the tag of the Xing header is."""
    return max(content.find(b"Xing"), content.find(b"Info"))


def stated_frames(content: bytes) -> int:
    count: int = struct.unpack_from(">I", content, tag_of(content) + 8)[0]
    return count


def with_count(content: bytes, count: int) -> bytes:
    """The same file, whose Xing header states another number of frames."""
    position = tag_of(content) + 8
    return content[:position] + struct.pack(">I", count) + content[position + 4 :]


def without_xing(content: bytes) -> bytes:
    """The same file without the frame that holds the Xing header."""
    sync = content[:2]
    start = content.find(sync, tag_of(content))
    while content[start + 2] >> 4 in (0, 15):
        start = content.find(sync, start + 1)
    return content[start:]


def with_picture(content: bytes) -> bytes:
    """Behind an ID3v2 tag of 10,000 bytes, as a cover picture makes it."""
    return b"ID3\4\0\0\0\0" + bytes([10000 >> 7, 10000 & 0x7F]) + bytes(10000) + content


def with_tags_behind(content: bytes) -> bytes:
    """Before an APE tag of 3,000 bytes and an ID3v1 tag."""
    return content + b"APETAGEX" + bytes(3000) + b"TAG" + bytes(125)


WHOLE: dict[str, Callable[[], bytes]] = {
    "vbr-without-xing": lambda: without_xing(mp3()),
    "vbr-without-xing-with-picture": lambda: with_picture(without_xing(mp3())),
    "cbr-without-xing": lambda: without_xing(mp3("CONSTANT")),
    "cbr-without-xing-with-picture": lambda: with_picture(without_xing(mp3("CONSTANT"))),
    "cbr-without-xing-with-tags": lambda: with_tags_behind(without_xing(mp3("CONSTANT"))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_mp3_that_states_no_length_is_read_to_its_end(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(WHOLE[name]())
    whole = mp3("CONSTANT" if "cbr" in name else "VARIABLE")
    info, problem = check_content(tmp_path / "a.mp3")
    audio_N = read_mono(tmp_path / "a.mp3", RATE)
    assert problem is None
    assert info is not None
    assert info.frames == len(audio_N) == stated_frames(whole) * FRAME
    # The header also states what the encoder padded; without it, the padding is heard.
    expected_N = read_mono(whole, RATE)
    lags = [int(np.argmax(np.correlate(audio_N[:9000], expected_N[:4000])))]
    overlap = audio_N[lags[0] :][: len(expected_N)]
    assert np.abs(overlap - expected_N[: len(overlap)]).max() < 1e-4


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_an_mp3_whose_header_states_too_little_is_read_to_its_end(share: float) -> None:
    whole = mp3()
    wrong = with_count(whole, int(share * stated_frames(whole)))
    assert check_content(wrong) == check_content(whole)
    assert np.array_equal(read_mono(wrong, RATE), read_mono(whole, RATE))
    assert len(read_mono(wrong, RATE)) == SECONDS * RATE


def test_an_mp3_with_a_right_header_is_read_as_before() -> None:
    with soundfile.SoundFile(io.BytesIO(mp3())) as file:
        expected_N = file.read(dtype="float32")
    assert np.array_equal(read_mono(mp3(), RATE), expected_N)


@pytest.mark.parametrize(
    "content",
    [mp3()[: len(mp3()) // 2], without_xing(mp3())[:-20], with_count(mp3(), 10_000)],
    ids=["half-of-it", "half-a-frame-at-the-end", "more-stated-than-there"],
)
def test_a_truncated_mp3_is_refused_by_check_and_read_alike(content: bytes) -> None:
    problem = str(check_content(content)[1])
    assert problem.startswith("is truncated: ")
    with pytest.raises(StageError, match="is truncated"):
        read_channels(content)


PCM = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
TONE = np.rint(1000 * np.sin(np.arange(4000) / 9)).astype("<i2").tobytes()


def wav(fields: bytes = PCM, audio: bytes = TONE) -> bytes:
    """A WAV, byte by byte. fields: its format."""
    header = b"fmt " + struct.pack("<I", len(fields)) + fields
    chunks = header + b"data" + struct.pack("<I", len(audio)) + audio
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


HIGH_RATE = struct.pack("<HHIIHH", 1, 1, 2147483647, 2**32 - 2, 2, 16)
MPEG_INSIDE = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)


def piped_flac() -> bytes:
    """A FLAC written to a pipe: its header states no length (36 bits of zeros)."""
    file = io.BytesIO()
    soundfile.write(file, speech_like(), RATE, format="FLAC")
    content = bytearray(file.getvalue())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def ogg() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech_like()[:8000], RATE, format="OGG")
    return file.getvalue()


def gsm() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech_like()[:8000], 8000, format="WAV", subtype="GSM610")
    return file.getvalue()


def test_a_flac_from_a_pipe_is_whole() -> None:
    info, problem = check_content(piped_flac())
    assert problem is None
    assert info is not None
    assert info.frames == SECONDS * RATE == len(read_mono(piped_flac(), RATE))


def test_a_gsm_wav_reads_as_long_as_its_check_says(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(gsm())
    info, problem = check_content(tmp_path / "a.wav")
    assert problem is None
    assert info is not None
    assert info.frames == len(read_channels(tmp_path / "a.wav")[0])


def test_two_ogg_files_in_one_are_not_read_as_the_first() -> None:
    assert check_content(ogg())[1] is None
    assert "several Ogg streams" in str(check_content(ogg() + ogg())[1])
    with pytest.raises(StageError, match="several Ogg streams"):
        read_channels(ogg() + ogg())


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "headerless.raw": (lambda path: path.write_bytes(bytes(4000)), "no header"),
    "rate.wav": (lambda path: path.write_bytes(wav(HIGH_RATE)), "2147483647 Hz"),
    "mp3-inside.wav": (lambda path: path.write_bytes(wav(MPEG_INSIDE, mp3())), "MPEG"),
    "fifo.wav": (lambda path: os.mkfifo(path), "a device or a pipe"),
    "zero.wav": (lambda path: path.symlink_to("/dev/zero"), "a device or a pipe"),
    "folder.wav": (lambda path: path.mkdir(), "a folder|no audio files"),
    "noise.mp3": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9000)), "not audio"),
    "x" * 250 + ".wav.wav": (lambda path: None, "File name too long"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_one_error_of_the_manifest(name: str, tmp_path: Path, cli: Cli) -> None:
    make, reason = ODD[name]
    make(tmp_path / name)
    (tmp_path / "m.jsonl").write_text(f'{{"path": "{name}", "caption": "x", "split": "train"}}\n')
    data = ("--set", 'data.source="manifest"', "--set", 'data.path="m.jsonl"')
    for command in (
        ("train", "quickstart", "--dry-run", *data),
        ("evaluate", "--task", "t2a", "--reference", name, "--generated", name),
    ):
        result = cli(*command)
        assert result.code == 2, result.stderr
        assert any(part in result.stderr for part in reason.split("|"))
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [TypeError, ValueError, AssertionError, RuntimeError, IndexError])
def test_whatever_the_library_raises_is_a_damaged_file(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("inside the library")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    assert "damaged" in str(check_content(wav())[1])
    with pytest.raises(StageError, match="damaged"):
        read_channels(wav())
