"""`stagecli demo`: what its page does, that it is built, and what it refuses."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result
from helpers.samples import write_tone

from stagecli.errors import StageError
from stagecli.generate.demo import Trial, build_page, error_text, open_trial, serve


@pytest.fixture
def trial(trained: Path, tmp_path: Path) -> Callable[[str], Trial]:
    from stagecli.generate.model import load

    return lambda kind: Trial(load(trained / "runs" / kind), tmp_path)


def labels(page: Any) -> list[str]:
    """Of everything on a page that has one."""
    parts = page.config["components"]
    return [part["props"]["label"] for part in parts if part["props"].get("label")]


def test_prompts_make_sounds_of_the_length_asked_for(trial: Callable[[str], Trial]) -> None:
    one = trial("t2a")
    path, notes = one.generate("a bell", 0.4, 2, 1.5, 0)
    audio_N, rate = soundfile.read(path)
    assert (len(audio_N), rate, notes) == (3200, 8000, "")
    again, _ = one.generate("a bell", None, 2, 1.5, None)
    assert again != path
    assert np.array_equal(soundfile.read(again)[0], audio_N)  # emptied fields: the defaults
    with pytest.raises(StageError, match="bad arguments") as caught:
        one.generate("a bell", -1, 2, 1.5, -1)
    assert "seconds: must be a number" in error_text(caught.value)
    assert "seed: must be a whole number" in error_text(caught.value)


def test_files_are_restored_and_doubts_are_told(
    trial: Callable[[str], Trial], tmp_path: Path
) -> None:
    one = trial("sr")
    low = write_tone(tmp_path / "low.wav", 500)
    path, _ = one.restore(str(low), 2000, 2, 0)
    assert soundfile.info(path).samplerate == 16_000
    with pytest.raises(StageError, match="no file yet"):
        one.restore(None, 0, 2, 0)
    with pytest.raises(StageError, match="super-resolution"):
        one.generate("a bell", 1, 2, 1, 0)


def test_what_the_model_warns_of_is_on_the_page(trained: Path, tmp_path: Path) -> None:
    with open_trial(str(trained / "runs" / "sr"), "latest", warn=print) as one:
        low = write_tone(tmp_path / "low.wav", 500)
        path, notes = one.restore(str(low), 800, 2, 0)
        assert "cutoff 800 Hz is outside" in notes
        assert one.restore(str(low), 2000, 2, 0)[1] == ""
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("t2a", ["Prompt", "From training", "Seconds", "Steps", "cfg_scale", "Seed", "Result"]),
        ("sr", ["File", "Cutoff in Hz (0: measured in the file)", "Steps", "Seed", "Result"]),
    ],
)
def test_the_page_is_served_on_this_machine_only(
    trial: Callable[[str], Trial], kind: str, expected: list[str]
) -> None:
    page = build_page(trial(kind))
    assert labels(page) == expected
    with serve(page, None) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as answer:
            text = answer.read().decode()
        assert "fonts.googleapis.com" not in text
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(StageError, match="cannot serve"), serve(build_page(trial(kind)), port):
            pass
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_without_gradio_the_command_says_how_to_get_it(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = cli("demo", "runs/t2a")
    assert result.code == 2
    assert "pip install 'stagecli[demo]'" in result.stderr


@pytest.mark.parametrize(
    ("flags", "problem"),
    [(("none",), "no run or export"), (("runs/t2a", "--port", "0"), "--port: must be")],
)
def test_what_the_command_refuses(
    cli: Callable[..., Result], flags: tuple[str, ...], problem: str
) -> None:
    result = cli("demo", *flags)
    assert result.code == 2
    assert problem in result.stderr
