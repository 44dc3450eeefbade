"""Formats that libsndfile does not read: by the program ffmpeg, or one error that names it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.clips import RATE, noise

from stagecli.data.audio import read_channels, read_mono
from stagecli.data.audio_checks import check_content
from stagecli.data.bandwidth import file_bandwidth
from stagecli.data.finding import list_audio
from stagecli.data.open import open_source
from stagecli.errors import StageError
from stagecli.schema import Data

M4A = b"\0\0\0\x1cftypM4A and the rest of it"
# Writes the file that FAKE_AUDIO names, whatever it is asked; fails where FAKE_ERROR is set.
PROGRAM = """#!/bin/sh
if [ -n "$FAKE_ERROR" ]; then echo "$FAKE_ERROR" >&2; exit 1; fi
exec /bin/cat "$FAKE_AUDIO"
"""
AUDIO_NC = np.stack([noise(0), noise(1)], axis=1)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which is the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "ffmpeg"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    soundfile.write(tmp_path / "decoded.au", AUDIO_NC, RATE, "FLOAT", "BIG", "AU")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("FAKE_AUDIO", str(tmp_path / "decoded.au"))
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with an M4A file among others."""
    for split, number in (("train", 2), ("valid", 3)):
        (tmp_path / "clips" / split).mkdir(parents=True)
        soundfile.write(tmp_path / "clips" / split / "a.wav", noise(number), RATE)
    (tmp_path / "clips/train/b.m4a").write_bytes(M4A)
    return tmp_path / "clips"


def opened(folder: Path) -> list[str]:
    """Keys of the training clips."""
    data = Data(source="folder", path=str(folder), sample_rate=RATE, seconds=0.5)
    source = open_source(
        data,
        need_captions=False,
        base=folder,
        splits=("train", "valid"),
        cache_dir=folder.parent / "cache",
    )
    return [clip.key for clip in source.clips("train")]


def test_what_the_program_writes_is_read(program: Path, clips: Path) -> None:
    path = clips / "train/b.m4a"
    for audio in (path, path.read_bytes()):
        decoded_NC, rate = read_channels(audio)
        assert rate == RATE
        assert np.array_equal(decoded_NC, AUDIO_NC.astype(np.float32))
        info, problem = check_content(audio)
        assert problem is None
        assert info is not None
        assert (info.sample_rate, info.frames, info.channels) == (RATE, len(AUDIO_NC), 2)
    assert file_bandwidth(path) == pytest.approx(RATE / 2, rel=0.02)
    assert opened(clips) == ["train/a.wav", "train/b.m4a"]


def test_a_reader_that_stops_early_ends_the_program(
    program: Path, clips: Path, tmp_path: Path
) -> None:
    """25 s of audio, of which a measurement of bandwidth reads 20."""
    soundfile.write(tmp_path / "decoded.au", noise(0, 25), RATE, "FLOAT", "BIG", "AU")
    assert file_bandwidth(clips / "train/b.m4a") == pytest.approx(RATE / 2, rel=0.02)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_without_the_program_the_error_names_it_and_is_not_remembered(
    program: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(clips))
    with pytest.raises(StageError) as caught:
        opened(clips)
    (problem,) = caught.value.problems
    assert problem.where.endswith("b.m4a")
    assert "MP4 or M4A audio is decoded by the program ffmpeg, which is not installed" in (
        problem.what
    )
    assert ".flac" in problem.what
    monkeypatch.setenv("PATH", here)
    assert len(opened(clips)) == 2


def test_the_files_of_a_folder_do_not_depend_on_the_program(
    program: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_program = list_audio(clips)
    monkeypatch.setenv("PATH", str(clips))
    assert list_audio(clips) == with_program
    assert Path("train/b.m4a") in with_program.files


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("[mov,mp4 @ 0x55d1] moov atom not found", "moov atom not found"),
        ("file:{path}: Invalid data", "Invalid data"),
    ],
)
def test_damage_is_a_problem_of_the_file(
    message: str, problem: str, program: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips / "train/b.m4a"
    monkeypatch.setenv("FAKE_ERROR", message.format(path=path))
    assert check_content(path) == (None, f"is not audio, or is damaged: {problem}")
    with pytest.raises(StageError, match="damaged"):
        read_mono(path, RATE)


def test_sound_that_libsndfile_reads_never_asks_the_program(
    program: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ERROR", "it was asked")
    (clips / "train/b.m4a").unlink()
    (clips / "train/c.m4a").write_bytes((clips / "train/a.wav").read_bytes())
    assert opened(clips) == ["train/a.wav", "train/c.m4a"]
    (clips / "train/d.wav").write_bytes(b"no audio at all")
    with pytest.raises(StageError, match="cannot be used") as caught:
        opened(clips)
    assert "it was asked" not in str(caught.value)


def test_audio_that_is_cut_off_in_au_is_found(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.au", noise(0), RATE)
    whole = (tmp_path / "a.au").read_bytes()
    assert check_content(tmp_path / "a.au")[1] is None
    (tmp_path / "a.au").write_bytes(whole[: len(whole) // 2])
    assert str(check_content(tmp_path / "a.au")[1]).startswith("is truncated: ")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")
@pytest.mark.parametrize("ending", ["m4a", "mka", "wv"])
def test_the_real_program(ending: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0), RATE)
    path = tmp_path / f"\u00e9 -a.{ending}"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(tmp_path / "a.wav"), str(path)]
    subprocess.run(command, check=True)
    info, problem = check_content(path)
    assert problem is None
    assert info is not None
    assert (info.sample_rate, info.channels) == (RATE, 1)
    assert info.seconds == pytest.approx(0.5, abs=0.1)
    assert read_mono(path, RATE).std() == pytest.approx(0.1, rel=0.2)
    path.write_bytes(path.read_bytes()[:-200])
    assert str(check_content(path)[1]).startswith("is not audio, or is damaged: ")
