"""Samples of a run as training writes them, made of tones instead of a network's output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from helpers.run_directories import write_rows

RATE = 8000


def write_tone(path: Path, hertz: float, *, seconds: float = 0.3, rate: int = RATE) -> Path:
    """A sine of half of full scale, as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_N = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * time_N), rate, subtype="FLOAT")
    return path


def add_prompts(run: Path, steps: Sequence[int], prompts: Sequence[str], **tone: Any) -> None:
    """Samples of prompts at some steps, each beside one recording."""
    write_tone(run / "samples" / "reference" / "a.wav", 440, **tone)
    for step in steps:
        folder = run / "samples" / f"step_{step:08d}"
        rows = []
        for k, prompt in enumerate(prompts):
            write_tone(folder / f"{k:03d}.wav", 500 + 100 * k, **tone)
            reference = "../reference/a.wav"
            row = {"path": f"{k:03d}.wav", "prompt": prompt, "reference": reference}
            rows.append({**row, "checkpoint": step})
        write_rows(folder / "samples.jsonl", rows)


def add_restored(run: Path, steps: Sequence[int], clips: Sequence[str], **tone: Any) -> None:
    """Restored clips at some steps, each beside its input and its target."""
    for step in steps:
        folder = run / "samples" / f"step_{step:08d}"
        rows = []
        for k, clip in enumerate(clips):
            for name, hertz in (("input", 300), ("target", 900), ("output", 600)):
                write_tone(folder / f"{k:03d}_{name}.wav", hertz, **tone)
            row = {"path": f"{k:03d}_output.wav", "input": clip, "cutoff": 2000}
            rows.append({**row, "checkpoint": step})
        write_rows(folder / "samples.jsonl", rows)
