"""`stagecli sample` with prompts: text -> clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecli.data.audio import write_wav
from stagecli.data.cache import Count
from stagecli.data.text_files import JsonLine, json_lines, require_text, text_problem
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.generate.output import is_single_file, make_folder, provenance, write_rows
from stagecli.generate.pipeline import SamplerSettings, load_pipeline
from stagecli.runs.integrity import Warn

MAX_BYTES = 10_000_000  # of a file of prompts


def read_prompts(path: Path) -> list[str]:
    """One prompt per line, or JSONL with `prompt` or `caption`. Raises StageError with the line."""
    text = require_text(path, "cannot read the prompts", largest=MAX_BYTES)
    if path.suffix.lower() == ".jsonl":
        lines = [(row.number, *_prompt_of(row)) for row in json_lines(text)]
    else:
        lines = [
            (number, line.strip(), text_problem(line))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    problems = [Problem(f"{path}:{number}", problem) for number, _, problem in lines if problem]
    if problems:
        raise StageError(f"bad lines in {path}", problems=problems)
    if not lines:
        raise StageError(f"{path} contains no prompts")
    return [prompt for _, prompt, _ in lines]


def _prompt_of(row: JsonLine) -> tuple[str, str | None]:
    """The prompt of a line of JSONL, and why it is none."""
    if row.problem:
        return "", row.problem
    values = row.value if isinstance(row.value, dict) else {}
    prompt = values.get("prompt")
    if prompt is None:
        prompt = values.get("caption")
    if not isinstance(prompt, str) or not prompt.strip():
        return "", "needs a JSON object with a text as `prompt` or `caption`"
    return prompt.strip(), text_problem(prompt)


def _require_prompts(prompts: Sequence[str]) -> None:
    """Raise StageError for no prompts, or for some that are not text."""
    if not prompts:
        raise StageError("no prompts", hint='give --prompt "TEXT" or --prompts FILE')
    problems = [
        Problem(f"prompt {number}", reason)
        for number, prompt in enumerate(prompts, 1)
        if (reason := text_problem(prompt))
    ]
    if problems:
        raise StageError("prompts that are not text", problems=problems)


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
    _require_prompts(prompts)
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
