"""`stagecli sample` with prompts: text -> clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stagecli.data.cache import Count
from stagecli.data.text_files import JsonLine, json_lines, require_text, text_problem
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.generate.output import Destination, open_results, provenance
from stagecli.generate.pipeline import SamplerSettings, load_pipeline

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
    destination: Destination,
    *,
    seed: int,
    checkpoint: str = "latest",
    seconds: float | None = None,
    inputs: Sequence[Path] = (),
    progress: Count | None = None,
    **changes: Any,
) -> list[JsonRow]:
    """Generate one clip per prompt and return the rows of samples.jsonl.

    inputs: files that the prompts were read from; progress: counts sampler steps of clips; changes:
    fields of `SamplerSettings`, None keeps the recipe's. Raises StageError, before any work if a
    file cannot be written.
    """
    # Everything that can be wrong, before any clip is generated.
    _require_prompts(prompts)
    pipeline, trained = load_pipeline(run_dir, checkpoint, warn=destination.warn)
    if pipeline.recipe.task.kind != "t2a":
        raise StageError(
            f"{run_dir} is a super-resolution run", hint="give it audio with --input FILE_OR_DIR"
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    if destination.is_single_file and len(prompts) > 1:
        raise StageError(
            f"{len(prompts)} prompts do not fit one file", hint="give --output a folder"
        )
    names = [destination.name(f"{number:04d}.wav") for number in range(len(prompts))]
    common = provenance(settings, seed, trained)
    with open_results(
        destination,
        run_dir / "samples" / f"{trained.name}_prompts",
        names=[(name, repr(prompt)) for name, prompt in zip(names, prompts, strict=True)],
        inputs=inputs,
    ) as results:
        # Batch by batch, so that an interruption loses one batch at most.
        for start in range(0, len(prompts), settings.batch_size):
            batch = range(start, min(start + settings.batch_size, len(prompts)))
            clips = pipeline.generate(
                [prompts[i] for i in batch],
                seed=seed,
                settings=settings,
                seconds=seconds,
                indices=batch,
                after_step=_step_counter(progress, batch, len(prompts), settings.steps),
            )
            for i, audio_N in zip(batch, clips, strict=True):
                row = {"prompt": prompts[i], **common}
                results.add(names[i], audio_N, pipeline.sample_rate, row)
    return results.rows


def _step_counter(
    progress: Count | None, batch: range, clips: int, steps: int
) -> Callable[[int], None] | None:
    """Reports the sampler's steps of a batch of clips, of those of all clips."""
    if progress is None:
        return None
    return lambda done: progress(batch.start * steps + len(batch) * done, clips * steps)
