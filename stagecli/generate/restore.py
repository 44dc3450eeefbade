"""`stagecli sample` with files: low-resolution audio -> full-band audio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli.condition.low import gain_of_power, splice_reach
from stagecli.data.audio import read_blocks, read_format
from stagecli.data.bandwidth import cutoff_of
from stagecli.data.cache import Count
from stagecli.data.finding import find_audio
from stagecli.dsp.blocks import joined, overlapping, part_lengths
from stagecli.errors import Problem, StageError, among
from stagecli.files import JsonRow
from stagecli.generate.file_noise import FileNoise
from stagecli.generate.low_audio import LowAudio, measure
from stagecli.generate.output import Destination, open_results, provenance
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline

WINDOWS = 8  # training windows that are restored together, as one diffusion state
FULL_BAND = 0.95  # a cutoff above this fraction of the Nyquist frequency leaves nothing to restore
TOLERANCE = 0.05  # a cutoff may lie this far (relative) outside the trained range without a warning


def restore_files(
    run_dir: Path,
    source: Path,
    destination: Destination,
    *,
    seed: int,
    cutoff: float | None = None,
    skip_bad: bool = False,
    checkpoint: str = "latest",
    progress: Count | None = None,
    **changes: Any,
) -> list[JsonRow]:
    """Restore a file, or every file of a folder, and return the rows of samples.jsonl.

    Inputs may have any rate, length and number of channels; outputs have the model's rate, and the
    loudness of the input, unless that would exceed -1 dBFS. What is made of a file depends on it,
    its name within `source` and the seed, not on other files. cutoff: in Hz, default: measured in
    each file, and files below the trained range are left out; skip_bad: leave out files that cannot
    be used, with a warning, instead of raising; progress: counts windows of the network; changes:
    as in `generate_files`. Raises StageError.
    """
    # Everything that can be wrong, before any file is restored.
    files = list(find_audio(source, destination.warn, skip_bad=skip_bad))
    pipeline, checkpoint_path = load_pipeline(run_dir, checkpoint, warn=destination.warn)
    if pipeline.recipe.task.kind != "sr":
        raise StageError(
            f"{run_dir} is a text-to-audio run", hint='give it text with --prompt "TEXT"'
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    if destination.is_single_file and source.is_dir():
        raise StageError("a folder of inputs does not fit one file", hint="give --output a folder")
    ending = destination.encoding.suffix
    names = {
        file: destination.name(_relative(file, source).with_suffix(ending).as_posix())
        for file in files
    }
    common = {"seed": seed, **provenance(settings, run_dir, checkpoint_path)}
    with open_results(
        destination,
        run_dir / "samples" / f"{checkpoint_path.name}_restored",
        names=[(name, str(file)) for file, name in names.items()],
        inputs=files,
    ) as results:
        all_work = _plan(files, cutoff, pipeline, destination.warn, skip_bad=skip_bad)
        _require_encoding(all_work, destination, pipeline.sample_rate)
        total = sum(_windows(pipeline, work, settings) for work in all_work.values())
        advance = _window_counter(progress, total)

        # File by file.
        for file, work in all_work.items():
            name = _relative(file, source).as_posix()
            noise = FileNoise(seed, name, work.low.correlation_CC, pipeline.codec.channels)
            blocks = _restored(pipeline, work, noise, settings, advance)
            shape = (work.low.length, len(work.low.audible_C))
            row = {"input": str(file), "cutoff": work.cutoff, **common}
            results.add_long(names[file], blocks, shape, pipeline.sample_rate, row)
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


def _relative(file: Path, source: Path) -> Path:
    """The name of an input within its folder."""
    return file.relative_to(source) if source.is_dir() else Path(file.name)


@dataclass(frozen=True)
class _Work:
    """A file, and the frequency in Hz above which to regenerate it."""

    low: LowAudio
    cutoff: float


def _plan(
    files: Sequence[Path],
    cutoff: float | None,
    pipeline: Pipeline,
    warn: Callable[[str], None],
    *,
    skip_bad: bool,
) -> dict[Path, _Work]:
    """The work on each file, at `cutoff` or where the file has been cut; without those left out.

    skip_bad: leave out full-band files with a warning, which are an error otherwise.

    Raises StageError that lists the full-band files, and if no file is left.
    """
    # What the model can restore.
    target = pipeline.sample_rate
    trained = pipeline.recipe.condition.cutoff
    assert trained is not None
    low, high = trained
    range_text = f"what the model was trained on ({low:g} to {high:g} Hz)"

    # What each file needs.
    work = {}
    problems = []
    for file in files:
        rate, _ = read_format(file)
        file_cutoff = cutoff or min(rate / 2, cutoff_of(read_blocks(file), rate))
        audio = measure(file, target, file_cutoff)
        if audio.audible_C.any():
            if file_cutoff >= FULL_BAND * target / 2:
                content = f"has content up to {file_cutoff:.0f} Hz"
                reason = f"{content}: nothing to restore at {target} Hz"
                if skip_bad:
                    warn(f"{file}: skipped: {reason}")
                    continue
                problems.append(Problem(str(file), reason))
            elif cutoff is None and file_cutoff < (1 - TOLERANCE) * low:
                warn(f"{file}: skipped: its cutoff {file_cutoff:.0f} Hz is below {range_text}")
                continue
            elif not (1 - TOLERANCE) * low <= file_cutoff <= (1 + TOLERANCE) * high:
                warn(f"{file}: cutoff {file_cutoff:.0f} Hz is outside {range_text}")
        if rate > target:
            warn(f"{file}: {rate} Hz is above the model's {target} Hz; the result has {target} Hz")
        work[file] = _Work(audio, file_cutoff)
    if problems:
        raise StageError(
            f"{among(len(problems), len(files), 'input file', 'is', 'are')} full-band",
            problems=problems,
            hint="pass --cutoff HZ to set the frequency above which to regenerate",
        )
    if not work:
        raise StageError(
            "every input was skipped" if skip_bad else f"every input ends below {range_text}",
            hint="pass --cutoff HZ to restore them all the same",
        )
    return work


def _require_encoding(
    all_work: Mapping[Path, _Work], destination: Destination, sample_rate: int
) -> None:
    """Raise StageError, listing every file, unless the format holds all results."""
    problems = [
        Problem(str(file), problem)
        for file, work in all_work.items()
        if (
            problem := destination.encoding.problem(
                sample_rate, (work.low.length, len(work.low.audible_C))
            )
        )
    ]
    if problems:
        raise StageError(
            f"--format {destination.encoding.format} does not hold every result",
            problems=problems,
            hint="choose another --format",
        )


def _grid(pipeline: Pipeline, cutoff: float) -> tuple[int, int, int]:
    """(audio samples of a part, of its overlap with the next, of the margins of the overlap).

    In the margins a part lacks what comes before or after: half of a window there, and what the
    splice looks at.
    """
    hop = pipeline.codec.hop
    window = pipeline.codec.frames(pipeline.num_samples)
    reach = -(-splice_reach(cutoff, pipeline.sample_rate) // hop)
    overlap = window + 2 * reach
    size = max(WINDOWS * window, 2 * overlap)
    # Windows of neighbours lie at the same places.
    stride = max(1, window // 2)
    overlap = size - (size - overlap) // stride * stride
    return size * hop, overlap * hop, (window // 4 + reach) * hop


def _windows(pipeline: Pipeline, work: _Work, settings: SamplerSettings) -> int:
    """Windows that go through the network."""
    size, overlap, _ = _grid(pipeline, work.cutoff)
    lengths = part_lengths(work.low.length, size, size - overlap)
    windows = sum(pipeline.restore_windows(length, settings) for length in lengths)
    return int(work.low.audible_C.sum()) * windows


def _restored(
    pipeline: Pipeline,
    work: _Work,
    noise: FileNoise,
    settings: SamplerSettings,
    advance: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """Audio in blocks [n, channels] at the model's rate; silent channels stay silent.

    Parts overlap, and in the overlap both start from the same noise.
    """
    size, overlap, margin = _grid(pipeline, work.cutoff)
    audible = np.flatnonzero(work.low.audible_C)
    gain = gain_of_power(work.low.power)

    def parts() -> Iterator[np.ndarray]:
        start = 0
        for low_NC in overlapping(work.low.blocks(), size, size - overlap):
            if audible.size == 0:
                yield low_NC
                continue
            frames = pipeline.codec.frames(len(low_NC))
            noise_CTW = noise.frames(start, start + frames)
            full = pipeline.restore_from(
                torch.from_numpy(noise_CTW).to(pipeline.device),
                list(low_NC.T[audible]),
                work.cutoff,
                gains=[gain] * audible.size,
                settings=settings,
                prompts=[""] * audible.size,
                advance=advance,
            )
            full_NC = np.zeros_like(low_NC)
            full_NC[:, audible] = np.stack(full, axis=1)
            yield full_NC
            start += (size - overlap) // pipeline.codec.hop

    return joined(parts(), overlap, margin)
