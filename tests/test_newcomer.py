"""The newcomer's way, as README shows it: from a folder of sound to a page about the model."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_results import Cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COUNT = 40
RATES = (16000, 22050, 44100, 48000)
CONTAINERS = ("wav", "flac", "ogg", "mp3", "wav")
CHANNELS = (1, 2, 1)
NAMES = ("täglich/glocke", "鐘/кол", "ordinary/bell")
# Enough to see that every step works.
SMALL = {
    "train.steps": "2",
    "train.batch_size": "4",
    "train.validate_clips": "2",
    "train.samples": "1",
    "train.sample_every": "0",
    "model.width": "32",
    "model.depth": "2",
    "model.heads": "2",
    "stage.regime.clips": "2",
    "evaluate.steps": "2",
}
SMALLER = {"t2a": {"condition.width": "32", "codec.iterations": "4"}, "sr": {}}


def way(task: str) -> list[list[str]]:
    """The words of the five commands of README that lead to a model of a task."""
    section = README.split("\n## Your own data\n")[1].split("\n## ")[0]
    blocks = [block.strip("\n").splitlines()[1:] for block in section.split("```")[1::2]]
    block = next(lines for lines in blocks if any(f"--task {task}" in line for line in lines))
    commands = [shlex.split(line, comments=True) for line in block]
    assert [command[0] for command in commands] == ["stagecli"] * 5
    return [command[1:] for command in commands]


def bell(number: int, rate: int, channels: int) -> np.ndarray:
    """A struck tone and a noise that fills the band, [N, C]."""
    random = np.random.default_rng(number)
    time_N = np.arange(int(rate * random.uniform(0.5, 0.9))) / rate
    tone_N = 0.3 * np.sin(2 * np.pi * (300 + 20 * number) * time_N)
    noise_NC = 0.2 * random.standard_normal((len(time_N), channels))
    return (np.exp(-5 * time_N)[:, None] * (tone_N[:, None] + noise_NC)).astype(np.float32)


def own_files(folder: Path) -> None:
    """Files as people have them: rates, channels, containers and names of all kinds."""
    kinds = zip(
        itertools.cycle(RATES),
        itertools.cycle(CONTAINERS),
        itertools.cycle(CHANNELS),
        itertools.cycle(NAMES),
        strict=False,
    )
    for number, (rate, container, channels, name) in zip(range(COUNT), kinds, strict=False):
        path = folder / f"{name} {number}.{container}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, bell(number, rate, channels), rate)
        path.with_suffix(".txt").write_text(f"a bell, number {number}, schön", encoding="utf-8")


@pytest.mark.parametrize("task", ["t2a", "sr"])
def test_five_commands_from_files_to_a_page(task: str, cli: Cli, tmp_path: Path) -> None:
    check, new, train, sample, inspect = way(task)

    # What is in the folder, and the recipe for it.
    folder = tmp_path / check[2]
    own_files(folder)
    report = cli(*check)
    assert report.code == 0, report.stdout + report.stderr
    assert "trainable" in report.stdout
    made = cli(*new)
    assert made.code == 0, made.stderr
    assert made.stderr.strip().endswith(shlex.join(["stagecli", *train]))

    # A model, in a few steps.
    small = {**SMALL, **SMALLER[task]}
    flags = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    trained = cli(*train, *flags)
    assert trained.code == 0, trained.stderr

    # What it makes, and the page.
    if task == "sr":
        soundfile.write(tmp_path / sample[-1], bell(99, 8000, 1), 8000)
    run = tmp_path / sample[1]
    before = set(run.rglob("*.wav"))
    sampled = cli(*sample)
    assert sampled.code == 0, sampled.stderr
    assert len(set(run.rglob("*.wav")) - before) == 1
    page = cli(*inspect)
    assert page.code == 0, page.stderr
    assert run.name in (tmp_path / inspect[-1]).read_text(encoding="utf-8")
