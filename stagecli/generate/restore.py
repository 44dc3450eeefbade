"""`stagecli sample` with files: low-resolution audio -> full-band audio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli.condition.low import gain_of_power, splice_reach
from stagecli.data.bandwidth import cutoff_of
from stagecli.data.cache import Count
from stagecli.data.finding import find_audio
from stagecli.dsp.blocks import joined, overlapping, part_lengths
from stagecli.errors import Problem, StageError, among
from stagecli.files import JsonRow
from stagecli.generate.file_noise import FileNoise
from stagecli.generate.low_audio import LowAudio, Recording, measure, recording_of_file
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
    pipeline, trained = load_pipeline(run_dir, checkpoint, warn=destination.warn)
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
    common = {"seed": seed, **provenance(settings, trained)}
    with open_results(
        destination,
        run_dir / "samples" / f"{trained.name}_restored",
        names=[(name, str(file)) for file, name in names.items()],
        inputs=files,
    ) as results:
        recordings = [recording_of_file(file) for file in files]
        all_work = plan_work(recordings, cutoff, pipeline, destination.warn, skip_bad=skip_bad)
        _require_encoding(all_work, destination, pipeline.sample_rate)
        total = sum(_windows(pipeline, work, settings) for work in all_work if work)
        advance = _window_counter(progress, total)

        # File by file.
        for file, work in zip(files, all_work, strict=True):
            if work is None:
                continue
            name = _relative(file, source).as_posix()
            blocks = restored_blocks(
                pipeline, work, settings, seed=seed, name=name, advance=advance
            )
            row = {"input": str(file), "cutoff": work.cutoff, **common}
            results.add_long(names[file], blocks, work.shape, pipeline.sample_rate, row)
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
class Work:
    """A recording, and the frequency in Hz above which to regenerate it."""

    low: LowAudio
    cutoff: float

    @property
    def shape(self) -> tuple[int, int]:
        """(N, channels) of the result."""
        return self.low.length, len(self.low.audible_C)


def plan_work(
    recordings: Sequence[Recording],
    cutoff: float | None,
    pipeline: Pipeline,
    warn: Callable[[str], None],
    *,
    skip_bad: bool = False,
) -> list[Work | None]:
    """The work on each recording, at `cutoff` or where it has been cut; None where it is left out.

    skip_bad: leave out those in full band with a warning, which are an error otherwise. Raises
    StageError that lists them, and if none is left.
    """
    # What the model can restore.
    target = pipeline.sample_rate
    trained = pipeline.recipe.condition.cutoff
    assert trained is not None
    low, high = trained
    range_text = f"what the model was trained on ({low:g} to {high:g} Hz)"

    # What each recording needs.
    all_work: list[Work | None] = []
    problems = []
    for recording in recordings:
        rate = recording.sample_rate
        name = recording.name
        own_cutoff = cutoff or min(rate / 2, cutoff_of(recording.read(), rate))
        audio = measure(recording, target, own_cutoff)
        if audio.audible_C.any():
            if own_cutoff >= FULL_BAND * target / 2:
                content = f"has content up to {own_cutoff:.0f} Hz"
                reason = f"{content}: nothing to restore at {target} Hz"
                if skip_bad:
                    warn(f"{name}: skipped: {reason}")
                    all_work.append(None)
                    continue
                problems.append(Problem(name, reason))
            elif cutoff is None and own_cutoff < (1 - TOLERANCE) * low:
                warn(f"{name}: skipped: its cutoff {own_cutoff:.0f} Hz is below {range_text}")
                all_work.append(None)
                continue
            elif not (1 - TOLERANCE) * low <= own_cutoff <= (1 + TOLERANCE) * high:
                warn(f"{name}: cutoff {own_cutoff:.0f} Hz is outside {range_text}")
        if rate > target:
            warn(f"{name}: {rate} Hz is above the model's {target} Hz; the result has {target} Hz")
        all_work.append(Work(audio, own_cutoff))
    if problems:
        raise StageError(
            f"{among(len(problems), len(recordings), 'input file', 'is', 'are')} full-band",
            problems=problems,
            hint="pass --cutoff HZ (cutoff=HZ in Python), the frequency above which to regenerate",
        )
    if not any(all_work):
        raise StageError(
            "every input was skipped" if skip_bad else f"every input ends below {range_text}",
            hint="pass --cutoff HZ (cutoff=HZ in Python) to restore them all the same",
        )
    return all_work


def _require_encoding(
    all_work: Sequence[Work | None], destination: Destination, sample_rate: int
) -> None:
    """Raise StageError, listing every file, unless the format holds all results."""
    problems = [
        Problem(work.low.recording.name, problem)
        for work in all_work
        if work and (problem := destination.encoding.problem(sample_rate, work.shape))
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


def _windows(pipeline: Pipeline, work: Work, settings: SamplerSettings) -> int:
    """Windows that go through the network."""
    size, overlap, _ = _grid(pipeline, work.cutoff)
    lengths = part_lengths(work.low.length, size, size - overlap)
    windows = sum(pipeline.restore_windows(length, settings) for length in lengths)
    return int(work.low.audible_C.sum()) * windows


def restored_blocks(
    pipeline: Pipeline,
    work: Work,
    settings: SamplerSettings,
    *,
    seed: int,
    name: str,
    advance: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """Audio in blocks [n, channels] at the model's rate; silent channels stay silent.

    Parts overlap, and in the overlap both start from the same noise, which is a function of seed
    and name. advance: called with a number of windows that went through the network.
    """
    noise = FileNoise(seed, name, work.low.correlation_CC, pipeline.codec.channels)
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
