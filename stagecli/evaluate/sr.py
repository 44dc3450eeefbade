"""Super-resolution: clips of a split are low-passed, restored, and scored against themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from stagecli.data import degrade as low_pass_filters
from stagecli.data.rows import Clip
from stagecli.errors import EXIT_FAILED, Problem, StageError, counted
from stagecli.evaluate.averages import average_scores
from stagecli.evaluate.chosen import chosen_metrics
from stagecli.evaluate.job import Job, Scores
from stagecli.evaluate.ledger import Ledger, fingerprint, open_ledger
from stagecli.evaluate.pairs import (
    PERCEPTUAL,
    PairSettings,
    audible_metrics,
    pair_conventions,
    score_pair,
)
from stagecli.evaluate.workers import Workers, open_workers
from stagecli.files import JsonRow
from stagecli.metrics.baselines import copy_up

SYSTEMS = {"unprocessed": "baseline", "copy-up": "baseline", "model": "model"}  # name: kind


def score_sr(job: Job) -> Scores:
    """Rows for the unprocessed input, naive copy-up and the model, per cutoff (and label).

    Whole clips are scored, and the scores of each are kept in the run. Raises StageError: no such
    label column, a package of the extra is missing, a clip that cannot be scored.
    """
    options = job.recipe.evaluate
    flags = job.flags
    cutoffs = list(flags.cutoffs or options.cutoffs)
    preset = flags.convention or options.preset
    groups = clips_by_label(job.clips, flags.by) if flags.by else {}

    # The metrics: perceptual ones only where they see some of the restored band.
    names = chosen_metrics(flags, "sr")
    by_cutoff, warnings = audible_metrics(cutoffs, job.pipeline.sample_rate, names)
    for warning in warnings:
        job.warn(warning)

    # The ledger's name leaves out what does not change the scores of a clip: cutoffs, grouping.
    settings: JsonRow = {
        "filter": options.filter,
        "order": options.order,
        "preset": preset,
        "perceptual": flags.perceptual,
        **({"metrics": names} if flags.metrics else {}),
    }
    ledger = _open_scores(job, settings, names)

    rows: list[JsonRow] = []
    files: list[JsonRow] = []
    with open_workers(names) as workers:
        for cutoff in cutoffs:
            pair_settings = PairSettings(
                sample_rate=job.pipeline.sample_rate,
                cutoff=cutoff,
                preset=preset,
                names=by_cutoff[cutoff],
            )
            _score_clips(job, ledger, pair_settings, workers)
            rows += _rows(job, ledger, cutoff, groups)
            files += _file_rows(job, ledger, cutoff)
    computed = [name for name in names if any(name in chosen for chosen in by_cutoff.values())]
    low_pass = (
        f"{options.filter} order {options.order}, zero phase, then sinc resampling to 2 x cutoff "
        "and back"
    )
    return Scores(
        rows=rows,
        files=files,
        conventions={**pair_conventions(preset, computed), "input": low_pass},
        settings={**settings, "cutoffs": cutoffs, "by": flags.by},
        by_clip={_at(cutoff): _scores_of(job, ledger, cutoff, "model") for cutoff in cutoffs},
    )


def _open_scores(job: Job, settings: JsonRow, names: Sequence[str]) -> Ledger:
    """The ledger of these settings, with what earlier calls have scored."""
    key = fingerprint({**job.settings, **settings})
    of_every_cutoff = [name for name in names if name not in PERCEPTUAL]
    required = {system: of_every_cutoff for system in SYSTEMS}
    ledger = open_ledger(job.evals_dir / f"{job.stem}_{key}.clips.jsonl", required)
    for line in ledger.damage_notice():
        job.note(line)
    if ledger.scores:
        scores = counted(len(ledger.scores), "score")
        job.note(f"reusing {scores} with the same settings from {ledger.path}")
    return ledger


def _at(cutoff: float) -> str:
    return f"{cutoff:g} Hz"


def _scores_of(job: Job, ledger: Ledger, cutoff: float, system: str) -> dict[str, dict[str, float]]:
    """{clip: {metric: value}} of one system, from the ledger."""
    return {clip.key: (ledger.get(_at(cutoff), clip.key) or {})[system] for clip in job.clips}


def _rows(
    job: Job, ledger: Ledger, cutoff: float, groups: Mapping[str, Sequence[str]]
) -> list[JsonRow]:
    """A row per system, each followed by its rows per group."""
    rows: list[JsonRow] = []
    for system, kind in SYSTEMS.items():
        scores = _scores_of(job, ledger, cutoff, system)
        head = {"system": system, "kind": kind, "cutoff": cutoff}
        rows.append({**head, **average_scores(list(scores.values()), job.seed)})
        for group, keys in groups.items():
            averages = average_scores([scores[key] for key in keys], job.seed)
            rows.append({**head, "group": group, **averages})
    return rows


def _file_rows(job: Job, ledger: Ledger, cutoff: float) -> list[JsonRow]:
    """A row per system and clip, in the form of the rows of means."""
    return [
        {
            "system": system,
            "kind": kind,
            "cutoff": cutoff,
            "file": key,
            "n": 1,
            "metrics": {name: {"value": value} for name, value in scores.items()},
        }
        for system, kind in SYSTEMS.items()
        for key, scores in _scores_of(job, ledger, cutoff, system).items()
    ]


def _score_clips(job: Job, ledger: Ledger, settings: PairSettings, workers: Workers) -> None:
    """Restore and score every clip at one cutoff, except those the ledger has."""
    done = 0
    waiting: list[RestoredClip] = []
    for batch in _restored_batches(job, ledger, settings.cutoff):
        done += len(batch)
        waiting += [restored for restored in batch if restored.systems]
        if len(SYSTEMS) * len(waiting) >= 2 * workers.count or done == len(job.clips):
            _score_restored(waiting, ledger, settings, workers)
            waiting = []
        job.progress(f"cutoff {_at(settings.cutoff)}", done, len(job.clips))


def _score_restored(
    clips: Sequence[RestoredClip], ledger: Ledger, settings: PairSettings, workers: Workers
) -> None:
    """Score every system of these clips, in parallel, and keep the scores clip by clip."""
    label = _at(settings.cutoff)
    tasks = [(restored, system) for restored in clips for system in restored.systems]
    audio = [(restored.target, restored.systems[system]) for restored, system in tasks]
    scores: dict[str, dict[str, float]] = {}
    results = workers.map(partial(_score, settings), audio)
    for (restored, system), result in zip(tasks, results, strict=True):
        if isinstance(result, ValueError):
            raise StageError(
                f"cannot score {system} at {label}",
                problems=[Problem(restored.clip.key, str(result))],
                exit_code=EXIT_FAILED,
            )
        scores[system] = result
        if len(scores) == len(restored.systems):
            ledger.put(label, restored.clip.key, scores)
            scores = {}


def _score(settings: PairSettings, audio: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    target, estimate = audio
    return score_pair(target, estimate, settings)


@dataclass(frozen=True)
class RestoredClip:
    """systems: audio [N] by system; empty if the clip has been scored already."""

    clip: Clip
    target: np.ndarray
    systems: Mapping[str, np.ndarray]


def _restored_batches(job: Job, ledger: Ledger, cutoff: float) -> Iterator[list[RestoredClip]]:
    """Every clip in order; neighbours of one length are restored together.

    What is restored together does not depend on the ledger, so that a continued evaluation gives
    the same numbers to the last bit.
    """
    first = 0
    while first < len(job.clips):
        # Clips of one length, as many as fill a batch of windows.
        batch = [job.clips[first]]
        targets = [job.source.read(job.clips[first])]
        most = job.pipeline.restored_at_once(len(targets[0]), job.sampling)
        for clip in job.clips[first + 1 : first + most]:
            target = job.source.read(clip)
            if len(target) != len(targets[0]):
                break
            batch.append(clip)
            targets.append(target)

        # Restored whole, or not at all if every clip has been scored.
        scored = [ledger.get(_at(cutoff), clip.key) is not None for clip in batch]
        if all(scored):
            systems: list[dict[str, np.ndarray]] = [{} for _ in batch]
        else:
            systems = _systems(job, batch, targets, cutoff, first)
        yield [
            RestoredClip(clip, target, {} if known else audio)
            for clip, target, audio, known in zip(batch, targets, systems, scored, strict=True)
        ]
        first += len(batch)


def _systems(
    job: Job, clips: Sequence[Clip], targets: Sequence[np.ndarray], cutoff: float, first: int
) -> list[dict[str, np.ndarray]]:
    """Audio of every system for clips of one length; first: index of the first in the job."""
    rate = job.pipeline.sample_rate
    low_pass = low_pass_filters.test_low_pass(job.recipe.evaluate, cutoff)
    lows = [low_pass_filters.degrade(target, rate, low_pass) for target in targets]
    restored = job.pipeline.restore_many(
        lows,
        cutoff,
        seed=job.seed,
        settings=job.sampling,
        indices=range(first, first + len(clips)),
        prompts=[clip.caption for clip in clips],
    )
    return [
        {"unprocessed": low, "copy-up": _copied_up(clip, low, rate, cutoff), "model": model}
        for clip, low, model in zip(clips, lows, restored, strict=True)
    ]


def _copied_up(clip: Clip, low: np.ndarray, rate: int, cutoff: float) -> np.ndarray:
    try:
        return copy_up(torch.from_numpy(low), rate, cutoff).numpy()
    except ValueError as error:
        problem = Problem(clip.key, str(error))
        raise StageError(
            f"no copy-up at {_at(cutoff)}", problems=[problem], exit_code=EXIT_FAILED
        ) from None


def clips_by_label(clips: Sequence[Clip], column: str) -> dict[str, list[str]]:
    """Keys of the clips by "column value", sorted. Raises StageError if a clip lacks the column."""
    groups: dict[str, list[str]] = {}
    for clip in clips:
        if column not in clip.labels:
            columns = sorted({name for clip in clips for name in clip.labels})
            raise StageError(
                f"--by {column}: {clip.key} has no such label",
                hint=f"labels of this data set: {', '.join(columns) or 'none'}",
            )
        groups.setdefault(f"{column} {clip.labels[column]}", []).append(clip.key)
    return dict(sorted(groups.items()))
