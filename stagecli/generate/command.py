"""`stagecli sample`: prompts -> clips, or low-resolution files -> full-band files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stagecli.data.audio import find_audio, read_channels, write_wav
from stagecli.data.cache import Count
from stagecli.dsp.resample import resample
from stagecli.errors import Problem, StageError
from stagecli.files import write_atomic
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.schema import Recipe

AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {
    ".aif",
    ".oga",
    ".opus",
}
FULL_BAND = 0.95  # a cutoff above this share of Nyquist leaves nothing to restore
EMPTY_DB = 90.0  # a band this far below the loudest bin counts as empty


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, or JSONL with `prompt` or `caption`. Raises StageError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(
            "cannot read the prompts", problems=[Problem(str(path), str(error))]
        ) from error
    prompts = []
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line.strip())
            continue
        try:
            row = json.loads(line)
            prompts.append(str(row.get("prompt") or row["caption"]))
        except (ValueError, KeyError, AttributeError):
            problems.append(
                Problem(f"{path}:{number}", "needs a JSON object with `prompt` or `caption`")
            )
    if problems or not prompts:
        raise StageError(
            f"{path} holds no usable prompts" if not problems else f"bad lines in {path}",
            problems=problems,
        )
    return prompts


def sample_prompts(
    run_dir: Path,
    prompts: Sequence[str],
    output: Path | None,
    *,
    seed: int,
    checkpoint: str = "latest",
    seconds: float | None = None,
    progress: Count | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Generate one clip per prompt into `output` (default: the run's samples/); the rows of samples.jsonl."""
    if not prompts:
        raise StageError("no prompts", hint='give --prompt "TEXT" or --prompts FILE')
    pipeline, path = load_pipeline(run_dir, checkpoint)
    if pipeline.recipe.task.kind != "t2a":
        raise StageError(
            f"{run_dir} is a super-resolution run", hint="give it audio with --input FILE_OR_DIR"
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    single = output is not None and output.suffix.lower() == ".wav"
    if single and len(prompts) > 1:
        raise StageError(
            f"{len(prompts)} prompts do not fit one file", hint="give --output a folder"
        )
    folder = _folder(output.parent if output and single else output, run_dir, path, "prompts")
    clips = pipeline.generate(
        prompts, seed=seed, settings=settings, seconds=seconds, progress=progress
    )
    rows = []
    for i, (prompt, audio) in enumerate(zip(prompts, clips, strict=True)):
        name = output.name if output and single else f"{i:04d}.wav"
        write_wav(folder / name, audio, pipeline.sample_rate)
        rows.append({"path": name, "prompt": prompt, **_facts(settings, seed, run_dir, path)})
    _write_rows(folder, rows)
    return [{**row, "file": str(folder / row["path"])} for row in rows]


def _folder(output: Path | None, run_dir: Path, checkpoint: Path, kind: str) -> Path:
    folder = output or run_dir / "samples" / f"{checkpoint.name}_{kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(
            "cannot write the samples", problems=[Problem(str(folder), str(error))]
        ) from error
    return folder


def _facts(settings: SamplerSettings, seed: int, run_dir: Path, checkpoint: Path) -> dict[str, Any]:
    chosen = asdict(settings)
    chosen.pop("batch_size")
    return {"seed": seed, **chosen, "run": str(run_dir), "checkpoint": checkpoint.name}


def _write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """samples.jsonl beside the files; rows of files that this call did not write stay."""
    path = folder / "samples.jsonl"
    new = {row["path"] for row in rows}
    old = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )
    kept = [row for row in old if row["path"] not in new]
    write_atomic(
        path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*kept, *rows])
    )


def bandwidth(audio_N: np.ndarray, sample_rate: int) -> float:
    """Hz up to which the audio has content: the highest bin within EMPTY_DB of the loudest one, on average."""
    size = min(4096, max(256, 2 ** int(math.log2(max(len(audio_N), 256)))))
    window = np.hanning(size)
    if len(audio_N) < size:
        audio_N = np.pad(audio_N * np.hanning(len(audio_N)), (0, size - len(audio_N)))
    # Whole frames only: one that reaches past a sound cut off in the middle would show a step, which has every band.
    frames = np.lib.stride_tricks.sliding_window_view(audio_N, size)[:: size // 2]
    power = np.mean(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2, axis=0)
    if power.max() <= 0:
        return sample_rate / 2
    full = np.nonzero(10 * np.log10(np.maximum(power, 1e-30) / power.max()) > -EMPTY_DB)[0]
    return float((full[-1] + 1) * sample_rate / size)


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
) -> list[dict[str, Any]]:
    """Restore every file at the model's rate: any input rate, length and channel count, loudness kept."""
    files = find_audio(source)
    pipeline, path = load_pipeline(run_dir, checkpoint)
    if pipeline.recipe.task.kind != "sr":
        raise StageError(
            f"{run_dir} is a text-to-audio run", hint='give it text with --prompt "TEXT"'
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    single = output is not None and output.suffix.lower() == ".wav"
    if single and source.is_dir():
        raise StageError("a folder of inputs does not fit one file", hint="give --output a folder")
    folder = _folder(output.parent if output and single else output, run_dir, path, "restored")
    cutoffs = _cutoffs(files, cutoff, pipeline.recipe, warn)
    rows = []
    for i, (file, used) in enumerate(zip(files, cutoffs, strict=True)):
        name = (
            output.name if output and single else str(_relative(file, source).with_suffix(".wav"))
        )
        target = folder / name
        if target.resolve() == file.resolve():
            raise StageError(
                f"{file} would be overwritten by its own result", hint="choose another --output"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_wav(target, _restore(pipeline, file, used, seed, settings), pipeline.sample_rate)
        rows.append(
            {
                "path": name,
                "input": str(file),
                "cutoff": used,
                **_facts(settings, seed, run_dir, path),
            }
        )
        if progress:
            progress(i + 1, len(files))
    _write_rows(folder, rows)
    return [{**row, "file": str(folder / row["path"])} for row in rows]


def _relative(file: Path, source: Path) -> Path:
    return file.relative_to(source) if source.is_dir() else Path(file.name)


def _cutoffs(
    files: Sequence[Path], asked: float | None, recipe: Recipe, warn: Callable[[str], None]
) -> list[float]:
    """The cutoff of each file in Hz: `asked`, or where its content ends. Raises StageError listing full-band files."""
    target = recipe.data.sample_rate
    known = recipe.condition.cutoff
    assert known is not None
    cutoffs = []
    problems = []
    for file in files:
        audio_NC, rate = read_channels(file)
        heard = [
            channel for channel in audio_NC.T if np.any(channel)
        ]  # a silent channel says nothing about the band
        cutoff = asked or min(
            rate / 2, max((bandwidth(channel, rate) for channel in heard), default=rate / 2)
        )
        cutoffs.append(cutoff)
        if heard and cutoff >= FULL_BAND * target / 2:
            problems.append(
                Problem(
                    str(file),
                    f"has content up to {cutoff:.0f} Hz: nothing to restore at {target} Hz",
                )
            )
        elif heard and not 0.95 * known[0] <= cutoff <= 1.05 * known[1]:
            trained = f"{known[0]:g} to {known[1]:g} Hz"
            warn(
                f"{file}: cutoff {cutoff:.0f} Hz is outside what the model was trained on ({trained})"
            )
        if rate > target:
            warn(f"{file}: {rate} Hz is above the model's {target} Hz; the result has {target} Hz")
    if problems:
        hint = "say with --cutoff HZ above which frequency the band is to be made anew"
        raise StageError(
            f"{len(problems)} of {len(files)} input files are full-band",
            problems=problems,
            hint=hint,
        )
    return cutoffs


def _restore(
    pipeline: Pipeline, file: Path, cutoff: float, seed: int, settings: SamplerSettings
) -> np.ndarray:
    """Audio [N, channels] at the model's rate."""
    audio_NC, rate = read_channels(file)
    channels = [resample(channel, rate, pipeline.sample_rate) for channel in audio_NC.T]
    # The channels share one noise, so that what is made anew sits where the stereo image is.
    made = [
        pipeline.restore(c, cutoff, seed=seed, settings=settings) if np.any(c) else c
        for c in channels
    ]
    return np.stack(made, axis=1)
