"""An LSD of any stated convention: parsed, computed, printed with the number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.metrics.lsd_presets import LSD_PRESETS, preset_of
from stagecli.metrics.spectral import lsd

RATE = 16000


def spectra(audio: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """|X|^2 of frames centred on k * hop, reflected ends, periodic Hann window."""
    padded = np.pad(audio.astype(np.float64), n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    return np.abs(np.fft.rfft(frames * window, axis=1)) ** 2


@pytest.mark.parametrize("form", ["clamp", "add"])
def test_a_stated_convention_is_the_formula(form: str) -> None:
    x, y = noise(0.5, RATE, 0), noise(0.5, RATE, 1)
    eps = 0.01
    power_x, power_y = (spectra(z, 400, 100) for z in (x, y))
    if form == "clamp":
        logs = [np.log10(np.maximum(z, eps)) for z in (power_x, power_y)]
    else:
        logs = [np.log10(z + eps) for z in (power_x, power_y)]
    expected = np.sqrt(((logs[0] - logs[1]) ** 2).mean(axis=1)).mean()
    stated = f"n_fft=400,hop=100,eps={eps},form={form}"
    found = lsd(torch.from_numpy(x), torch.from_numpy(y), RATE, stated)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_preset_stated_as_text_is_the_preset() -> None:
    x, y = (torch.from_numpy(noise(0.5, RATE, seed)) for seed in (0, 1))
    assert lsd(x, y, RATE, "n_fft=2048,hop=512,eps=1e-8") == lsd(x, y, RATE, "nuwave")
    assert preset_of("ssr_eval") is LSD_PRESETS["ssr_eval"]
    one = preset_of("hop=256, n_fft=1024,eps=1e-6")
    assert one.name == preset_of("n_fft=1024,hop=256,eps=0.000001").name == preset_of(one.name).name
    assert "n_fft 1024 hop 256" in one.convention and "1e-06" in one.convention


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nuwave3", "unknown LSD preset"),
        ("n_fft=1024,hop=256", "eps must be given"),
        ("n_fft=1024,hop=2048,eps=1e-6", "hop must be a whole number from 1 to 1024"),
        ("n_fft=1e9,hop=2,eps=1e-6", "n_fft must be a whole number"),
        ("n_fft=64,hop=2,eps=nan", "eps must be a number"),
        ("n_fft=64,hop=2,eps=1e-6,floor=2", "unknown key 'floor'"),
        ("n_fft=64,hop=2,eps=1e-6,form=log", "form is 'log'"),
    ],
)
def test_a_convention_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset_of(text)


def test_the_command_takes_a_convention_and_prints_it(cli: Cli, tmp_path: Path) -> None:
    for seed, folder in enumerate(("real", "made")):
        (tmp_path / folder).mkdir()
        write_wav(tmp_path / folder / "a.wav", noise(0.5, RATE, seed), RATE)
    command = ("evaluate", "--reference", "real", "--generated", "made", "--cutoff", "4000")
    command = (*command, "--task", "sr", "--lsd", "n_fft=400,hop=100,eps=1e-5")
    scores = document(cli(*command, "--json"))
    assert "n_fft 400 hop 100" in scores["conventions"]["lsd_hf"]
    assert scores["settings"]["preset"] == "n_fft=400,hop=100,eps=1e-05,form=clamp,pad=reflect"
    both = cli(*command, "--preset", "nuwave")
    assert both.code == 2 and "give only one of them" in both.stderr
    bad = cli(*command[:-1], "n_fft=400")
    assert bad.code == 2 and "hop, eps must be given" in bad.stderr
