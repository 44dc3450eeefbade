"""Super-resolution of a folder of recordings: scores, and the level of the made band per octave.

    python docs/experiments/sr_level.py runs/esc10-sr DIR --seconds 6
    python docs/experiments/sr_level.py runs/esc10-sr DIR --cutoff 4000 --sampler heun --steps 4

Every file at the model's rate or above is mixed to mono, cut to --seconds, low-passed with the
recipe's test filter and restored. For each cutoff and system: the mean over files of LSD and
log-mel distance, and in dB the energy of each octave above the cutoff over that of the reference,
with the standard deviation over files. An octave in which a reference is 80 dB below its loudest
one does not count for that file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stagecli.data.audio import read_format, read_mono
from stagecli.data.degrade import degrade, test_low_pass
from stagecli.data.finding import find_audio
from stagecli.evaluate.pairs import PairSettings, score_pair
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.metrics.baselines import copy_up

EMPTY_DB = 80.0
LOWEST_HZ = 62.5
SHORTEST = 0.2  # seconds


def octaves(cutoff: float, sample_rate: int) -> list[tuple[float, float]]:
    """Edges in Hz of the octaves above the cutoff; the last one ends at half the sample rate."""
    nyquist = sample_rate / 2
    edges = [cutoff * 2**k for k in range(math.ceil(math.log2(nyquist / cutoff)))]
    if len(edges) > 1 and nyquist / edges[-1] < math.sqrt(2):
        edges.pop()  # a remainder of less than half an octave joins the one below
    return list(zip(edges, [*edges[1:], nyquist], strict=True))


def band_energy(audio_N: np.ndarray, sample_rate: int, band: tuple[float, float]) -> float:
    """Energy of audio [N] between two frequencies in Hz."""
    power_F = np.abs(np.fft.rfft(audio_N.astype(np.float64))) ** 2
    hertz_F = np.fft.rfftfreq(audio_N.size, 1 / sample_rate)
    return float(power_F[(hertz_F >= band[0]) & (hertz_F < band[1])].sum())


def levels_db(
    target_N: np.ndarray, estimate_N: np.ndarray, sample_rate: int, cutoff: float
) -> list[float]:
    """Level of each octave above the cutoff over the reference's, dB; NaN where that is empty."""
    below = [
        band_energy(target_N, sample_rate, (LOWEST_HZ * 2**k, LOWEST_HZ * 2 ** (k + 1)))
        for k in range(math.ceil(math.log2(sample_rate / 2 / LOWEST_HZ)))
    ]
    empty = max(below) * 10 ** (-EMPTY_DB / 10)
    levels = []
    for band in octaves(cutoff, sample_rate):
        reference = band_energy(target_N, sample_rate, band)
        energy = band_energy(estimate_N, sample_rate, band)
        is_empty = reference <= empty
        levels.append(math.nan if is_empty else 10 * math.log10((energy + 1e-12) / reference))
    return levels


def read_folder(
    folder: Path, sample_rate: int, seconds: float, every: int
) -> dict[str, np.ndarray]:
    """Audio [N] of every so many files, by name.

    Files of a lower rate, shorter than `SHORTEST` or silent are left out.
    """
    clips = {}
    for file in list(find_audio(folder, print))[::every]:
        if read_format(file)[0] < sample_rate:
            continue
        audio_N = read_mono(file, sample_rate, file.name)[: round(seconds * sample_rate)]
        if audio_N.size >= SHORTEST * sample_rate and np.abs(audio_N).max() > 1e-3:
            clips[str(file.relative_to(folder))] = audio_N
    return clips


def score(
    pipeline: Pipeline,
    clips: dict[str, np.ndarray],
    cutoff: float,
    settings: SamplerSettings,
) -> dict[str, dict[str, list[list[float]]]]:
    """{system: {"scores" or "levels": one list per file}}."""
    rate = pipeline.sample_rate
    low_pass = test_low_pass(pipeline.recipe.evaluate, cutoff)
    pair = PairSettings(
        sample_rate=rate, cutoff=cutoff, preset="nuwave", names=["lsd", "lsd_hf", "log_mel"]
    )
    rows: dict[str, dict[str, list[list[float]]]] = {}
    for index, target_N in enumerate(clips.values()):
        low_N = degrade(target_N, rate, low_pass)
        model_N = pipeline.restore(low_N, cutoff, seed=0, settings=settings, index=index)
        systems = {
            "unprocessed": low_N,
            "copy-up": copy_up(torch.from_numpy(low_N), rate, cutoff).numpy(),
            "model": model_N,
        }
        for name, audio_N in systems.items():
            row = rows.setdefault(name, {"scores": [], "levels": []})
            row["scores"].append(list(score_pair(target_N, audio_N, pair).values()))
            row["levels"].append(levels_db(target_N, audio_N, rate, cutoff))
    return rows


def print_rows(cutoff: float, rate: int, rows: dict[str, dict[str, list[list[float]]]]) -> None:
    """A line of a Markdown table for each system."""
    names = [f"{low:.0f} to {high:.0f} Hz" for low, high in octaves(cutoff, rate)]
    for system, row in rows.items():
        scores = np.mean(row["scores"], axis=0)
        levels = np.array(row["levels"])
        shown = [
            f"{name}: {np.nanmean(level):+.1f} ± {np.nanstd(level):.1f}"
            for name, level in zip(names, levels.T, strict=True)
        ]
        values = " | ".join(f"{value:.3f}" for value in scores)
        print(f"| {cutoff:.0f} | {system} | {values} | {'; '.join(shown)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cutoff", type=float, action="append", help="Hz; may be repeated")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each file")
    parser.add_argument("--every", type=int, default=1, help="use every so many files")
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args(arguments)
    pipeline, _ = load_pipeline(options.run)
    settings = SamplerSettings.of(
        pipeline.recipe.evaluate, sampler=options.sampler, steps=options.steps
    )
    clips = read_folder(options.folder, pipeline.sample_rate, options.seconds, options.every)
    print(f"{len(clips)} files, {settings.sampler} with {settings.steps} steps\n")
    print("| cutoff Hz | system | lsd | lsd_hf | log_mel | level per octave, dB |")
    print("|---|---|---|---|---|---|")
    for cutoff in options.cutoff or (4000.0, 8000.0, 12000.0):
        print_rows(cutoff, pipeline.sample_rate, score(pipeline, clips, cutoff, settings))


if __name__ == "__main__":
    main()
