"""`stagecli sample` with files: low-resolution audio -> full-band audio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagecli.data.audio import read_channels, write_wav
from stagecli.data.cache import Count
from stagecli.data.finding import find_audio
from stagecli.dsp.resample import resample
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.generate.output import is_single_file, make_folder, provenance, write_rows
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.schema import Recipe

FULL_BAND = 0.95  # a cutoff above this fraction of the Nyquist frequency leaves nothing to restore
EMPTY_DB = 90.0  # a band this far below the loudest bin counts as empty
TOLERANCE = 0.05  # a cutoff may lie this far (relative) outside the trained range without a warning


def restore_files(
    run_dir: Path,
    source: Path,
    output: Path | None,
    *,
    seed: int,
    cutoff: float | None = None,
    checkpoint: str = "latest",
    warn: Callable[[str], None],
    progress: Count | None = None,
    **changes: Any,
) -> list[JsonRow]:
    """Restore a file, or every file of a folder, and return the rows of samples.jsonl.

    Inputs may have any rate, length and number of channels; outputs have the model's rate, and the
    loudness of the input. cutoff: in Hz, default: measured in each file. output, changes: as in
    `generate_files`. Raises StageError.
    """
    # Everything that can be wrong, before any file is restored.
    files = list(find_audio(source, warn))
    pipeline, checkpoint_path = load_pipeline(run_dir, checkpoint, warn=warn)
    if pipeline.recipe.task.kind != "sr":
        raise StageError(
            f"{run_dir} is a text-to-audio run", hint='give it text with --prompt "TEXT"'
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    if is_single_file(output) and source.is_dir():
        raise StageError("a folder of inputs does not fit one file", hint="give --output a folder")
    folder = make_folder(output, run_dir, checkpoint_path, "restored")
    cutoffs = _choose_cutoffs(files, cutoff, pipeline.recipe, warn)

    # File by file.
    common = provenance(settings, seed, run_dir, checkpoint_path)
    rows = []
    for number, (file, file_cutoff) in enumerate(zip(files, cutoffs, strict=True), 1):
        if output and is_single_file(output):
            name = output.name
        else:
            relative = file.relative_to(source) if source.is_dir() else Path(file.name)
            name = str(relative.with_suffix(".wav"))
        target = folder / name
        if target.resolve() == file.resolve():
            raise StageError(
                f"{file} would be overwritten by its own result", hint="choose another --output"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        audio_NC = _restore(pipeline, file, file_cutoff, seed, settings)
        write_wav(target, audio_NC, pipeline.sample_rate)
        rows.append({"path": name, "input": str(file), "cutoff": file_cutoff, **common})
        if progress:
            progress(number, len(files))
    return write_rows(folder, rows)


def bandwidth(audio_N: np.ndarray, sample_rate: int) -> float:
    """Hz up to which audio has content: the highest bin within EMPTY_DB of the loudest one.

    Bins are powers averaged over time. Silence counts as full-band.
    """
    size = min(4096, max(256, 2 ** int(math.log2(max(len(audio_N), 256)))))
    window = np.hanning(size)
    if len(audio_N) < size:
        audio_N = np.pad(audio_N * np.hanning(len(audio_N)), (0, size - len(audio_N)))
    # Whole frames only: a frame that reaches past an abrupt end would contain a step, which is
    # full-band.
    frames = np.lib.stride_tricks.sliding_window_view(audio_N, size)[:: size // 2]
    power = np.mean(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2, axis=0)
    if power.max() <= 0:
        return sample_rate / 2
    decibels = 10 * np.log10(np.maximum(power, 1e-30) / power.max())
    audible = np.nonzero(decibels > -EMPTY_DB)[0]
    return float((audible[-1] + 1) * sample_rate / size)


def _choose_cutoffs(
    files: Sequence[Path], cutoff: float | None, recipe: Recipe, warn: Callable[[str], None]
) -> list[float]:
    """The cutoff of each file in Hz: `cutoff`, or the file's bandwidth.

    Raises StageError that lists the full-band files.
    """
    target = recipe.data.sample_rate
    trained = recipe.condition.cutoff
    assert trained is not None
    low, high = trained
    cutoffs = []
    problems = []
    for file in files:
        audio_NC, rate = read_channels(file)
        audible = [channel for channel in audio_NC.T if np.any(channel)]  # silence has no bandwidth
        widest = max((bandwidth(channel, rate) for channel in audible), default=rate / 2)
        file_cutoff = cutoff or min(rate / 2, widest)
        cutoffs.append(file_cutoff)
        if audible and file_cutoff >= FULL_BAND * target / 2:
            message = f"has content up to {file_cutoff:.0f} Hz: nothing to restore at {target} Hz"
            problems.append(Problem(str(file), message))
        elif audible and not (1 - TOLERANCE) * low <= file_cutoff <= (1 + TOLERANCE) * high:
            warn(
                f"{file}: cutoff {file_cutoff:.0f} Hz is outside what the model was trained on "
                f"({low:g} to {high:g} Hz)"
            )
        if rate > target:
            warn(f"{file}: {rate} Hz is above the model's {target} Hz; the result has {target} Hz")
    if problems:
        raise StageError(
            f"{len(problems)} of {len(files)} input files are full-band",
            problems=problems,
            hint="pass --cutoff HZ to set the frequency above which to regenerate",
        )
    return cutoffs


def _restore(
    pipeline: Pipeline, file: Path, cutoff: float, seed: int, settings: SamplerSettings
) -> np.ndarray:
    """Audio [N, channels] at the model's rate; silent channels stay silent."""
    audio_NC, rate = read_channels(file)
    channels = []
    for channel_N in audio_NC.T:
        low_N = resample(channel_N, rate, pipeline.sample_rate)
        if np.any(low_N):
            # All channels share one noise, so that the new band follows the stereo image.
            low_N = pipeline.restore(low_N, cutoff, seed=seed, settings=settings)
        channels.append(low_N)
    return np.stack(channels, axis=1)
