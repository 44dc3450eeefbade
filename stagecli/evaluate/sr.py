"""Super-resolution: clips of a split through the low-pass filter, restored, and scored against themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stagecli.data import degrade as low_pass_filters
from stagecli.data.cache import Progress
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.evaluate.ledger import Ledger
from stagecli.evaluate.pairs import SR_METRICS, SR_QUICK, audible, conventions, score_named
from stagecli.evaluate.summary import JsonRow, summarise
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.metrics.baselines import copy_up

SYSTEMS = {"unprocessed": "baseline", "copy-up": "baseline", "model": "model"}


@dataclass(frozen=True)
class SROptions:
    """full: the STFT and mel distances too, which take most of the time; preset: of LSD (default: the recipe's);
    perceptual: PESQ, STOI and ViSQOL too; by: label column to split rows by; ledger: what has been scored already;
    warn: gets a line per thing that a reader should know."""

    full: bool = False
    preset: str | None = None
    perceptual: bool = False
    by: str | None = None
    ledger: Ledger = field(default_factory=Ledger)
    warn: Callable[[str], None] = lambda line: None


def score_sr(
    pipeline: Pipeline,
    source: Source,
    clips: Sequence[Clip],
    cutoffs: Sequence[float],
    seed: int,
    settings: SamplerSettings,
    progress: Progress,
    options: SROptions | None = None,
) -> tuple[list[JsonRow], dict[str, str]]:
    """Rows for the unprocessed input, naive copy-up and the model, per cutoff (and label); whole clips.

    Gives (rows, conventions); without options the metrics of `SR_QUICK`. Scores of single clips stay in the ledger.
    Raises StageError: no such label column, a package of the extra is missing, a clip that cannot be scored.
    """
    options = options or SROptions()
    rate = pipeline.sample_rate
    table = pipeline.recipe.evaluate
    preset = options.preset or table.preset
    groups = by_label(clips, options.by) if options.by else {}
    heard, notes = audible(cutoffs, rate) if options.perceptual else ({}, [])
    names = SR_METRICS if options.full else SR_QUICK
    for note in notes:
        options.warn(note)
    rows: list[JsonRow] = []
    for cutoff in cutoffs:
        what = f"{cutoff:g} Hz"
        restored = _restored(pipeline, source, clips, cutoff, seed, settings, options.ledger)
        for done, (clip, target, made) in enumerate(restored, 1):
            if made:
                asked = [*names, *heard.get(cutoff, ())]
                scores = {
                    system: score_named(
                        clip.key, f"{system} at {what}", target, audio, rate, cutoff, preset, asked
                    )
                    for system, audio in made.items()
                }
                options.ledger.put(what, clip.key, scores)
            progress(f"cutoff {what}", done, len(clips))
        for system, kind in SYSTEMS.items():
            of = {clip.key: (options.ledger.get(what, clip.key) or {})[system] for clip in clips}
            head = {"system": system, "kind": kind, "cutoff": cutoff}
            rows.append({**head, **summarise(list(of.values()), seed)})
            for group, keys in groups.items():
                rows.append({**head, "group": group, **summarise([of[key] for key in keys], seed)})
    computed = dict.fromkeys([*names, *(name for of in heard.values() for name in of)])
    filter_text = f"{table.filter} order {table.order}, zero phase, then sinc resampling to 2 x cutoff and back"
    return rows, {**conventions(preset, list(computed)), "input": filter_text}


def _restored(
    pipeline: Pipeline,
    source: Source,
    clips: Sequence[Clip],
    cutoff: float,
    seed: int,
    settings: SamplerSettings,
    ledger: Ledger,
) -> Iterator[tuple[Clip, np.ndarray, dict[str, np.ndarray]]]:
    """(clip, target, audio of each system) in order; none for what the ledger has.

    Neighbours of one length are restored together. What is restored together does not depend on what the ledger has,
    so that a continued evaluation gives the same numbers to the last bit.
    """
    rate = pipeline.sample_rate
    low_pass = low_pass_filters.test_low_pass(pipeline.recipe.evaluate, cutoff)
    first = 0
    while first < len(clips):
        batch = [clips[first]]
        targets = [source.read(clips[first])]
        most = pipeline.restored_at_once(len(targets[0]), settings)
        for clip in clips[first + 1 : first + most]:
            target = source.read(clip)
            if len(target) != len(targets[0]):
                break
            batch.append(clip)
            targets.append(target)
        known = [ledger.get(f"{cutoff:g} Hz", clip.key) is not None for clip in batch]
        made: list[np.ndarray] = []
        lows = (
            [low_pass_filters.degrade(target, rate, low_pass) for target in targets]
            if not all(known)
            else []
        )
        if lows:
            prompts = [clip.caption for clip in batch]
            indices = range(first, first + len(batch))
            made = pipeline.restore_many(
                lows, cutoff, seed=seed, settings=settings, indices=indices, prompts=prompts
            )
        for i, (clip, target) in enumerate(zip(batch, targets, strict=True)):
            if known[i]:
                yield clip, target, {}
                continue
            yield (
                clip,
                target,
                {
                    "unprocessed": lows[i],
                    "copy-up": _naive(clip, lows[i], rate, cutoff),
                    "model": made[i],
                },
            )
        first += len(batch)


def _naive(clip: Clip, low: np.ndarray, rate: int, cutoff: float) -> np.ndarray:
    try:
        return copy_up(torch.from_numpy(low), rate, cutoff).numpy()
    except ValueError as error:
        problem = Problem(clip.key, str(error))
        raise StageError(
            f"no copy-up at {cutoff:g} Hz", problems=[problem], exit_code=EXIT_FAILED
        ) from None


def by_label(clips: Sequence[Clip], column: str) -> dict[str, list[str]]:
    """Keys of the clips by "column value", sorted. Raises StageError where a clip lacks the column."""
    groups: dict[str, list[str]] = {}
    for clip in clips:
        if column not in clip.labels:
            known: Any = sorted({name for clip in clips for name in clip.labels})
            raise StageError(
                f"--by {column}: {clip.key} has no such label",
                hint=f"labels of this data set: {', '.join(known) or 'none'}",
            )
        groups.setdefault(f"{column} {clip.labels[column]}", []).append(clip.key)
    return dict(sorted(groups.items()))
