"""A trained model in Python: `stagecli.load`, what it generates, and how that is saved.

What `stagecli sample` does with files, a `Model` does in memory, by the same functions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli.bounds import CFG_SCALE, CLIP_SECONDS, HERTZ, SAMPLER_STEPS, SEED, Range
from stagecli.data.text_files import text_problem
from stagecli.errors import Problem, StageError, counted
from stagecli.flow.sampler import SAMPLERS
from stagecli.generate.encoding import SUBTYPES, choose_encoding
from stagecli.generate.listening import write_listening
from stagecli.generate.low_audio import recording_of_array, recording_of_file
from stagecli.generate.pipeline import Pipeline, default_device, load_pipeline
from stagecli.generate.restore import plan_work, restored_blocks
from stagecli.generate.settings import SamplerSettings
from stagecli.generate.trained import Trained, locate
from stagecli.schema import Recipe
from stagecli.targets import Target, plan_targets, write_target

DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")
LIMITS: dict[str, Range] = {
    "seconds": CLIP_SECONDS,
    "steps": SAMPLER_STEPS,
    "cfg_scale": CFG_SCALE,
    "cutoff": HERTZ,
    "seed": SEED,
    "sample_rate": HERTZ,
}
WHOLE = ("steps", "seed", "sample_rate")


@dataclass(frozen=True)
class Audio:
    """Generated audio.

    audio: float32 [B, C, N], one clip per prompt, as generated: peaks may exceed 1; sample_rate:
    Hz.
    """

    audio: np.ndarray
    sample_rate: int

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.audio)

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write files, turned down where a peak is above -1 dBFS, and return the paths.

        path: `FILE.wav`, `.flac`, `.mp3` or `.ogg` for one clip, else a folder, for float WAV files
        0000.wav, 0001.wav, ...; force: replace files that exist. Raises StageError, before anything
        is written where it shows by then.
        """
        # What to write.
        path = Path(path).expanduser()
        ending = path.suffix.lower().removeprefix(".")
        is_file = ending in SUBTYPES
        if is_file and len(self) > 1:
            raise StageError(
                f"{counted(len(self), 'clip')} do not fit one file",
                hint="name a folder, without an ending",
            )
        if not is_file and ending and not path.is_dir():
            raise StageError(
                f"cannot write {path}: unknown format", hint=f"end it in {', '.join(SUBTYPES)}"
            )
        encoding = choose_encoding(path if is_file else None)
        problem = encoding.problem(self.sample_rate, (self.audio.shape[2], self.audio.shape[1]))
        if problem:
            raise StageError(f"cannot write {path}: {problem}", hint="choose another format")
        paths = [path] if is_file else [path / f"{i:04d}.wav" for i in range(len(self))]
        plan_targets(
            [Target(target, str(path)) for target in paths], force=force, make_folders=True
        )

        # Write it.
        write = partial(write_target, force=force)
        for target, audio_CN in zip(paths, self.audio, strict=True):
            write_listening(target, audio_CN.T, self.sample_rate, write=write, encoding=encoding)
        return paths


class Model:
    """A trained model that generates or restores; `load` makes one.

    home: folder of its run or export; recipe: that it was trained with; step: of its weights; task:
    `t2a` or `sr`; sample_rate: of its audio in Hz; device: that it is on.
    """

    def __init__(self, pipeline: Pipeline, trained: Trained, warn: Callable[[str], None]) -> None:
        self.home: Path = trained.home
        self.step: int = trained.step
        self.recipe: Recipe = pipeline.recipe
        self.task: str = pipeline.recipe.task.kind
        self.sample_rate: int = pipeline.sample_rate
        self.device: torch.device = pipeline.device
        self._pipeline = pipeline
        self._warn = warn

    def __repr__(self) -> str:
        return f"<stagecli model {self.home}, {self.task}, step {self.step}, on {self.device}>"

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        sampler: str | None = None,
        seed: int = 0,
        negative_prompt: str = "",
    ) -> Audio:
        """One mono clip per prompt, as `stagecli sample --prompt` (t2a).

        seconds: length, default: that of training; steps, cfg_scale, sampler: default: those of the
        recipe's `[evaluate]`; negative_prompt: what classifier-free guidance leads away from, which
        needs a cfg_scale above 1. Clip i depends on (seed, i) and its prompt. Raises StageError
        with everything that is wrong.
        """
        # Everything that can be wrong.
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        problems = _out_of_range(seconds=seconds, steps=steps, cfg_scale=cfg_scale, seed=seed)
        problems += _bad_texts(texts, negative_prompt) + _bad_sampler(sampler)
        if not texts:
            problems.append(Problem("prompts", "is empty"))
        self._require("t2a", "generate", "model.restore(FILE)", problems)
        settings = self._settings(steps=steps, cfg_scale=cfg_scale, sampler=sampler)
        if negative_prompt and settings.cfg_scale == 1:
            raise StageError(
                "negative_prompt has no effect at cfg_scale 1", hint="give a cfg_scale above 1"
            )

        # The clips.
        clips = self._pipeline.generate(
            texts, seed=seed, settings=settings, seconds=seconds, negative_prompt=negative_prompt
        )
        return Audio(np.stack(clips)[:, None, :], self.sample_rate)

    def restore(
        self,
        source: str | Path | np.ndarray,
        *,
        sample_rate: int | None = None,
        cutoff: float | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
    ) -> Audio:
        """Audio with its high band restored, [1, C, N], as `stagecli sample --input` (sr).

        source: a file, or an array [N] or [C, N] of `sample_rate` Hz, of any rate, length and
        number of channels; cutoff: in Hz, from where to regenerate, default: measured. A file gives
        what the command gives; an array has noise of its own. Raises StageError.
        """
        # Everything that can be wrong.
        problems = _out_of_range(cutoff=cutoff, steps=steps, seed=seed, sample_rate=sample_rate)
        problems += _bad_sampler(sampler)
        if isinstance(source, np.ndarray):
            problems += _bad_array(source, sample_rate)
        elif sample_rate is not None:
            problems.append(Problem("sample_rate", "is for an array: a file has its own"))
        self._require("sr", "restore", 'model.generate("TEXT")', problems)
        settings = self._settings(steps=steps, sampler=sampler)

        # One recording.
        if isinstance(source, np.ndarray):
            recording = recording_of_array(np.atleast_2d(source), int(sample_rate or 0))
            name = ""
        else:
            recording = recording_of_file(Path(source).expanduser())
            name = Path(source).name
        (work,) = plan_work([recording], cutoff, self._pipeline, self._warn)
        assert work is not None  # an only one that is left out is an error
        blocks = restored_blocks(
            self._pipeline, work, settings, seed=seed, name=name, advance=lambda count: None
        )
        return Audio(np.concatenate(list(blocks)).T[None].astype(np.float32), self.sample_rate)

    def _settings(self, **changes: Any) -> SamplerSettings:
        return SamplerSettings.of(self.recipe.evaluate, **changes)

    def _require(self, task: str, method: str, instead: str, problems: Sequence[Problem]) -> None:
        """Raise StageError for a model of another task, or with the problems of the arguments."""
        if self.task != task:
            kind = "text-to-audio" if self.task == "t2a" else "super-resolution"
            raise StageError(f"{self.home} is a {kind} model", hint=f"call {instead}")
        if problems:
            raise StageError(
                f"model.{method}() has bad arguments",
                problems=problems,
                hint=f"help(stagecli.Model.{method}) describes them",
            )


def load(
    source: str | Path,
    *,
    checkpoint: str | int | None = None,
    device: str = "auto",
    warn: Callable[[str], None] | None = None,
) -> Model:
    """Load a trained model, with its EMA weights.

    source: a run ("runs/x", or "x" under runs/), an export, or an export on the hub ("ORG/NAME",
    fetched once); checkpoint: "latest", "best" or a step, default: the latest; device: "auto" (the
    best there is), "cpu", "cuda", "cuda:1" or "mps"; warn: receives lines about what is doubtful,
    default: `warnings.warn`. Raises StageError.
    """
    place = _device(device)
    home = locate(source)
    say = warn or _warn
    which = "latest" if checkpoint is None else str(checkpoint)
    pipeline, trained = load_pipeline(home, which, warn=say, device=place)
    return Model(pipeline, trained, say)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _device(name: str) -> torch.device:
    """Raises StageError for a device that there is not."""
    if name == "auto":
        return default_device()
    if DEVICE.fullmatch(name):
        device = torch.device(name)
        there = {
            "cpu": True,
            "mps": torch.backends.mps.is_available(),
            "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        }
        if there[device.type]:
            return device
    raise StageError(
        f"there is no device {name!r} here", hint='device="auto" takes the best there is'
    )


def _out_of_range(**numbers: float | None) -> list[Problem]:
    """The numbers that are not what LIMITS and WHOLE say, by argument; None is left out."""
    problems = []
    for name, value in numbers.items():
        if value is None:
            continue
        limits = LIMITS[name]
        kind = "a whole number" if name in WHOLE else "a number"
        plain = value.item() if isinstance(value, np.generic) else value
        try:
            _ = limits.whole(plain) if name in WHOLE else limits.real(plain)
        except ValueError:
            problems.append(Problem(name, f"must be {kind} {limits}, got {str(value)[:40]}"))
    return problems


def _bad_texts(prompts: Sequence[object], negative_prompt: object) -> list[Problem]:
    named = [(f"prompt {number}", text) for number, text in enumerate(prompts, 1)]
    problems = []
    for name, text in [*named, ("negative_prompt", negative_prompt)]:
        reason = text_problem(text) if isinstance(text, str) else "must be text"
        if reason:
            problems.append(Problem(name, reason))
    return problems


def _bad_sampler(sampler: str | None) -> list[Problem]:
    if sampler is None or sampler in SAMPLERS:
        return []
    return [Problem("sampler", f"must be one of {', '.join(SAMPLERS)}, got {str(sampler)[:40]!r}")]


def _bad_array(audio: np.ndarray, sample_rate: int | None) -> list[Problem]:
    problems = []
    if sample_rate is None:
        problems.append(Problem("sample_rate", "is required for an array"))
    if audio.ndim not in (1, 2) or audio.size == 0:
        problems.append(Problem("source", f"must be [N] or [C, N], has the shape {audio.shape}"))
    elif audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        problems.append(
            Problem("source", f"must be [C, N], has the shape {audio.shape}: transpose")
        )
    elif not np.issubdtype(audio.dtype, np.floating) or not np.isfinite(audio).all():
        problems.append(Problem("source", "must be finite floats with a full scale of 1"))
    return problems
