"""`stagecli sample` with files: low-resolution audio -> full-band audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecli.data.audio import read_channels
from stagecli.data.bandwidth import widest_bandwidth
from stagecli.data.cache import Count
from stagecli.data.finding import find_audio
from stagecli.dsp.resample import resample
from stagecli.errors import Problem, StageError, among
from stagecli.files import JsonRow
from stagecli.generate.output import Destination, open_results, provenance
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline

FULL_BAND = 0.95  # a cutoff above this fraction of the Nyquist frequency leaves nothing to restore
TOLERANCE = 0.05  # a cutoff may lie this far (relative) outside the trained range without a warning


def restore_files(
    run_dir: Path,
    source: Path,
    destination: Destination,
    *,
    seed: int,
    cutoff: float | None = None,
    checkpoint: str = "latest",
    progress: Count | None = None,
    **changes: Any,
) -> list[JsonRow]:
    """Restore a file, or every file of a folder, and return the rows of samples.jsonl.

    Inputs may have any rate, length and number of channels; outputs have the model's rate, and the
    loudness of the input, unless that would exceed -1 dBFS. cutoff: in Hz, default: measured in
    each file; progress: counts windows of the network; changes: as in `generate_files`. Raises
    StageError.
    """
    # Everything that can be wrong, before any file is restored.
    files = list(find_audio(source, destination.warn))
    pipeline, checkpoint_path = load_pipeline(run_dir, checkpoint, warn=destination.warn)
    if pipeline.recipe.task.kind != "sr":
        raise StageError(
            f"{run_dir} is a text-to-audio run", hint='give it text with --prompt "TEXT"'
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    if destination.is_single_file and source.is_dir():
        raise StageError("a folder of inputs does not fit one file", hint="give --output a folder")
    names = [destination.name(_result_name(file, source)) for file in files]
    common = provenance(settings, seed, run_dir, checkpoint_path)
    with open_results(
        destination,
        run_dir / "samples" / f"{checkpoint_path.name}_restored",
        names=[(name, str(file)) for name, file in zip(names, files, strict=True)],
        inputs=files,
    ) as results:
        all_work = _plan(files, cutoff, pipeline, settings, destination.warn)
        advance = _window_counter(progress, sum(work.windows for work in all_work))

        # File by file.
        for name, work in zip(names, all_work, strict=True):
            audio_NC = _restore(pipeline, work, seed, settings, advance)
            row = {"input": str(work.file), "cutoff": work.cutoff, **common}
            results.add(name, audio_NC, pipeline.sample_rate, row)
    return results.rows


def _window_counter(progress: Count | None, total: int) -> Callable[[int], None]:
    """Adds up windows and reports the sum, of `total`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done = min(done + count, total)
        if progress:
            progress(done, total)

    return advance


def _result_name(file: Path, source: Path) -> str:
    """The name of a result in its folder; one folder of inputs keeps its shape."""
    relative = file.relative_to(source) if source.is_dir() else Path(file.name)
    return relative.with_suffix(".wav").as_posix()


@dataclass(frozen=True)
class _Work:
    """A file, the frequency in Hz above which to regenerate, and the network's windows it takes."""

    file: Path
    cutoff: float
    windows: int


def _plan(
    files: Sequence[Path],
    cutoff: float | None,
    pipeline: Pipeline,
    settings: SamplerSettings,
    warn: Callable[[str], None],
) -> list[_Work]:
    """The work on each file, at `cutoff` or at the file's bandwidth.

    Raises StageError that lists the full-band files.
    """
    # What the model can restore.
    target = pipeline.sample_rate
    trained = pipeline.recipe.condition.cutoff
    assert trained is not None
    low, high = trained

    # What each file needs.
    work = []
    problems = []
    for file in files:
        audio_NC, rate = read_channels(file)
        audible = int(np.any(audio_NC, axis=0).sum())
        file_cutoff = cutoff or min(rate / 2, widest_bandwidth(audio_NC, rate))
        length = _length(len(audio_NC), rate, target)
        windows = audible * pipeline.restore_windows(length, settings)
        work.append(_Work(file, file_cutoff, windows))
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
            f"{among(len(problems), len(files), 'input file', 'is', 'are')} full-band",
            problems=problems,
            hint="pass --cutoff HZ to set the frequency above which to regenerate",
        )
    return work


def _length(num_samples: int, rate: int, target: int) -> int:
    """The nearest number of samples at `target` Hz of as many at `rate` Hz; at least 1."""
    return max(1, round(num_samples * target / rate))


def _restore(
    pipeline: Pipeline,
    work: _Work,
    seed: int,
    settings: SamplerSettings,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Audio [N, channels] at the model's rate; silent channels stay silent."""
    audio_NC, rate = read_channels(work.file)
    length = _length(len(audio_NC), rate, pipeline.sample_rate)
    channels = []
    for channel_N in audio_NC.T:
        low_N = resample(channel_N, rate, pipeline.sample_rate)[:length]
        if np.any(low_N):
            # All channels share one noise, so that the new band follows the stereo image.
            low_N = pipeline.restore(
                low_N, work.cutoff, seed=seed, settings=settings, advance=advance
            )
        channels.append(low_N)
    return np.stack(channels, axis=1)
