"""`stagecli sample` with prompts: text -> clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecli.data.audio import write_wav
from stagecli.data.cache import Count
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.generate.output import is_single_file, make_folder, provenance, write_rows
from stagecli.generate.pipeline import SamplerSettings, load_pipeline
from stagecli.runs.integrity import Warn


def read_prompts(path: Path) -> list[str]:
    """One prompt per line, or JSONL with `prompt` or `caption`. Raises StageError with the line."""
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
    if problems:
        raise StageError(f"bad lines in {path}", problems=problems)
    if not prompts:
        raise StageError(f"{path} contains no prompts")
    return prompts


def generate_files(
    run_dir: Path,
    prompts: Sequence[str],
    output: Path | None,
    *,
    seed: int,
    checkpoint: str = "latest",
    seconds: float | None = None,
    warn: Warn | None = None,
    progress: Count | None = None,
    **changes: Any,
) -> list[JsonRow]:
    """Generate one clip per prompt and return the rows of samples.jsonl.

    output: a folder, or a WAV file for a single prompt; default: a folder in the run's samples/.
    changes: fields of `SamplerSettings`; None keeps the recipe's; warn: prints one line. Raises
    StageError.
    """
    if not prompts:
        raise StageError("no prompts", hint='give --prompt "TEXT" or --prompts FILE')
    pipeline, checkpoint_path = load_pipeline(run_dir, checkpoint, warn=warn)
    if pipeline.recipe.task.kind != "t2a":
        raise StageError(
            f"{run_dir} is a super-resolution run", hint="give it audio with --input FILE_OR_DIR"
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    if is_single_file(output) and len(prompts) > 1:
        raise StageError(
            f"{len(prompts)} prompts do not fit one file", hint="give --output a folder"
        )
    folder = make_folder(output, run_dir, checkpoint_path, "prompts")

    clips = pipeline.generate(
        prompts, seed=seed, settings=settings, seconds=seconds, progress=progress
    )
    common = provenance(settings, seed, run_dir, checkpoint_path)
    rows = []
    for number, (prompt, audio_N) in enumerate(zip(prompts, clips, strict=True)):
        name = output.name if output and is_single_file(output) else f"{number:04d}.wav"
        write_wav(folder / name, audio_N, pipeline.sample_rate)
        rows.append({"path": name, "prompt": prompt, **common})
    return write_rows(folder, rows)
