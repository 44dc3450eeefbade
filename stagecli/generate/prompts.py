"""`stagecli sample` with prompts: text -> clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stagecli.bounds import SEED
from stagecli.data.cache import Count
from stagecli.data.text_files import JsonLine, json_lines, require_text, text_problem
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.generate.file_names import clip_names
from stagecli.generate.init_audio import InitAudio, load_init_audio
from stagecli.generate.output import Destination, open_results, provenance
from stagecli.generate.pipeline import SamplerSettings, load_pipeline

MAX_BYTES = 10_000_000  # of a file of prompts


def read_prompts(path: Path) -> list[str]:
    """One prompt per line, or JSONL with `prompt` or `caption`. Raises StageError with the line.

    Blank lines are passed over, and in plain text those that begin with `#`.
    """
    text = require_text(path, "cannot read the prompts", largest=MAX_BYTES)
    if path.suffix.lower() == ".jsonl":
        lines = [(row.number, *_prompt_of(row)) for row in json_lines(text)]
    else:
        lines = [
            (number, line.strip(), text_problem(line))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip() and not line.lstrip().startswith("#")
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


def _require_prompts(prompts: Sequence[str], draws: Draws) -> None:
    """Raise StageError for no prompts, for some that are not text, and for impossible seeds."""
    if not prompts:
        raise StageError("no prompts", hint='give --prompt "TEXT" or --prompts FILE')
    problems = [
        Problem(f"prompt {number}", reason)
        for number, prompt in enumerate(prompts, 1)
        if (reason := text_problem(prompt))
    ]
    negative = text_problem(draws.negative_prompt)
    if negative:
        problems.append(Problem("--negative-prompt", negative))
    if draws.seed + draws.number - 1 not in SEED:
        raise StageError(
            f"--seed {draws.seed} with --num-samples {draws.number}: seeds must be {SEED}",
            hint="each sample has a seed of its own, the next one; choose a smaller --seed",
        )
    if problems:
        raise StageError("prompts that are not text", problems=problems)


@dataclass(frozen=True)
class Draws:
    """How often each prompt is drawn, and how.

    number: of samples per prompt; sample k of prompt i has the noise of (seed + k, i).
    negative_prompt: what classifier-free guidance leads away from; init: audio to start from.
    """

    seed: int = 0
    number: int = 1
    negative_prompt: str = ""
    init: InitAudio | None = None

    def record(self) -> JsonRow:
        """What each row of samples.jsonl says of them."""
        negative = {"negative_prompt": self.negative_prompt} if self.negative_prompt else {}
        return {**negative, **(self.init.record() if self.init else {})}


@dataclass(frozen=True)
class _Draw:
    """One clip: its prompt with its number, its seed, and the name of its file."""

    prompt: str
    index: int
    seed: int
    name: str


def generate_files(
    run_dir: Path,
    prompts: Sequence[str],
    destination: Destination,
    draws: Draws,
    *,
    checkpoint: str = "latest",
    seconds: float | None = None,
    inputs: Sequence[Path] = (),
    progress: Count | None = None,
    **changes: Any,
) -> list[JsonRow]:
    """Generate clips from every prompt and return the rows of samples.jsonl.

    seconds: length, default: that of training, or of the audio to start from; inputs: files that
    the prompts were read from; progress: counts sampler steps of clips; changes: fields of
    `SamplerSettings`, None keeps the recipe's. Raises StageError, before any work if a file cannot
    be written.
    """
    # Everything that can be wrong, before any clip is generated.
    _require_prompts(prompts, draws)
    pipeline, trained = load_pipeline(run_dir, checkpoint, warn=destination.warn)
    if pipeline.recipe.task.kind != "t2a":
        raise StageError(
            f"{run_dir} is a super-resolution run", hint="give it audio with --input FILE_OR_DIR"
        )
    settings = SamplerSettings.of(pipeline.recipe.evaluate, **changes)
    _require_effect(draws, settings)
    start = load_init_audio(draws.init, pipeline) if draws.init else None
    length = len(start.audio_N) if start else pipeline.clip_length(seconds)
    destination.require_encoding(pipeline.sample_rate, (length, 1))
    clips = _clips(prompts, draws, destination)
    seconds = length / pipeline.sample_rate
    common = {"seconds": seconds, **draws.record(), **provenance(settings, trained)}
    with open_results(
        destination,
        run_dir / "samples" / f"{trained.name}_prompts",
        names=[(clip.name, repr(clip.prompt)) for clip in clips],
        inputs=[*inputs, *([draws.init.file] if draws.init else [])],
    ) as results:
        # Batch by batch, so that an interruption loses one batch at most.
        shape = (pipeline.codec.frames(length), pipeline.codec.channels)
        for first in range(0, len(clips), settings.batch_size):
            batch = clips[first : first + settings.batch_size]
            audio = pipeline.generate_from(
                torch.stack([pipeline.noise(shape, clip.seed, clip.index) for clip in batch]),
                [clip.prompt for clip in batch],
                length,
                settings=settings,
                negative_prompt=draws.negative_prompt,
                edit=start.edit if start else None,
                after_step=_step_counter(progress, first, len(batch), len(clips), settings.steps),
            )
            for clip, audio_N in zip(batch, audio, strict=True):
                row = {"prompt": clip.prompt, "seed": clip.seed, "index": clip.index, **common}
                done_N, more = start.finished(audio_N) if start else (audio_N, {})
                results.add(clip.name, done_N, pipeline.sample_rate, row | more)
    return results.rows


def _clips(prompts: Sequence[str], draws: Draws, destination: Destination) -> list[_Draw]:
    """Every clip, prompt by prompt. Raises StageError for several clips in one file."""
    numbered = [
        (prompt, index, draws.seed + k)
        for index, prompt in enumerate(prompts)
        for k in range(draws.number)
    ]
    if destination.is_single_file and len(numbered) > 1:
        raise StageError(
            f"{len(prompts)} prompts do not fit one file"
            if draws.number == 1
            else f"--num-samples {draws.number}: {len(numbered)} clips do not fit one file",
            hint="give --output a folder",
        )
    names = clip_names(
        [prompt for prompt, _, _ in numbered],
        [seed for _, _, seed in numbered],
        destination.encoding.suffix,
    )
    return [
        _Draw(*clip, destination.name(name)) for clip, name in zip(numbered, names, strict=True)
    ]


def _require_effect(draws: Draws, settings: SamplerSettings) -> None:
    """Refuse a negative prompt where there is no guidance to lead away from it."""
    if draws.negative_prompt and settings.cfg_scale == 1:
        raise StageError(
            "--negative-prompt has no effect at --cfg-scale 1, which turns guidance off",
            hint="give a --cfg-scale above 1, such as 3",
        )


def _step_counter(
    progress: Count | None, first: int, size: int, clips: int, steps: int
) -> Callable[[int], None] | None:
    """Reports the sampler's steps of a batch of `size` clips, of those of all clips."""
    if progress is None:
        return None
    return lambda done: progress(first * steps + size * done, clips * steps)
